"""What a recipe is made of and what it costs, worked out from formulas alone."""

from dataclasses import dataclass
from pathlib import Path

from mixlab.core import units
from mixlab.core.config import dump_yaml, to_tree
from mixlab.core.run_dir import is_run
from mixlab.export.verdict import lines
from mixlab.jobs.config import AnyRunConfig, RefineRunConfig, RunConfig, load_config
from mixlab.jobs.session import optimizer_bytes_per_param
from mixlab.jobs.verdict import judge
from mixlab.nn.budget import model_budget, state_bytes, training_memory_bytes


@dataclass(frozen=True)
class Description:
    """The parts of `mixlab show`, ready to print."""

    name: str
    about: str
    facts: list[tuple[str, str]]
    layers: list[tuple[str, ...]]  # rows under LAYER_COLUMNS
    yaml: str
    exports: list[tuple[str, str]]  # engine, whether and how it could run the trained model


LAYER_COLUMNS = (
    "layers", "block", "sequence mixer", "channel mixer", "parameters", "FLOPs/token", "state",
)  # fmt: skip


def describe_recipe(recipe: str, overrides: list[str]) -> Description:
    """Explain a packaged recipe, a YAML file, or the config of a run folder.

    Raises:
        LabError: no such recipe, or it is not valid.
    """
    source = str(Path(recipe) / "config.yaml") if is_run(Path(recipe)) else recipe
    config = load_config(source, overrides)
    return describe(config)


def describe(config: AnyRunConfig) -> Description:
    """Explain a config."""
    if isinstance(config, RefineRunConfig):
        from mixlab.jobs.refine.show import describe_refiner  # it builds on this module

        return describe_refiner(config)
    model, train, seq_len = config.model, config.train, config.data.seq_len
    budget = model_budget(model, seq_len)
    micro_tokens = (train.micro_batch_size or train.batch_size) * seq_len
    memory = training_memory_bytes(
        model,
        micro_batch_tokens=micro_tokens,
        optimizer_bytes_per_param=optimizer_bytes_per_param(train),
    )
    facts = [
        ("parameters", f"{budget.n_params:,}"),
        ("active per token", f"{budget.n_active_params:,}"),
        ("without embeddings", f"{budget.n_non_embedding_params:,}"),
        ("training FLOPs per token", units.flops(budget.train_flops_per_token)),
        ("tokens per step", f"{config.tokens_per_step:,}"),
        ("length", _length(config, budget.train_flops_per_token)),
        (
            "decoding state",
            f"{units.size(state_bytes(model, model.max_seq_len, 2))} per sequence of "
            f"{model.max_seq_len} tokens in bfloat16",
        ),
        ("training memory", f"about {units.size(memory)} (estimate, without the data cache)"),
        ("corpus", f"{config.data.corpus.kind}, tokenizer {config.data.tokenizer.kind}"),
        ("optimizer", f"{train.optimizer.kind}, peak rate {train.optimizer.lr:g}, "
                      f"schedule {train.schedule.kind}"),
    ]  # fmt: skip
    return Description(
        name=config.name,
        about=" ".join(config.about.split()),
        facts=facts,
        layers=_layer_rows(config),
        yaml=dump_yaml(to_tree(config)),
        exports=lines(judge(config)),
    )


def _length(config: RunConfig, flops_per_token: float) -> str:
    length = config.train.length
    if length.unit == "seconds":
        return f"{units.duration(length.amount)} of training, measured in steps when it starts"
    steps = length.n_steps(config.tokens_per_step, flops_per_token, None)
    tokens = steps * config.tokens_per_step
    return (
        f"{steps:,} steps = {units.count(tokens)} tokens = "
        f"{units.flops(tokens * flops_per_token)} FLOPs"
    )


def _layer_rows(config: RunConfig) -> list[tuple[str, ...]]:
    """Neighbouring equal layers share a row."""
    rows: list[list[str]] = []
    spans: list[list[int]] = []
    for layer in model_budget(config.model, config.data.seq_len).layers:
        row = [
            layer.block,
            layer.sequence_mixer,
            layer.channel_mixer,
            f"{layer.n_params:,}",
            units.count(layer.forward_flops_per_token),
            units.size(layer.state_bytes),
        ]
        if rows and rows[-1] == row:
            spans[-1][1] = layer.index
        else:
            rows.append(row)
            spans.append([layer.index, layer.index])
    names = [str(a) if a == b else f"{a}-{b}" for a, b in spans]
    return [(name, *row) for name, row in zip(names, rows, strict=True)]
