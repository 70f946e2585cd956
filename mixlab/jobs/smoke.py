"""A recipe at a fraction of its size: the same kinds in the same pattern, minutes become seconds.

For `--smoke`, which shows that a recipe runs from end to end, and for the checks before a run,
whose answers do not depend on width or depth. Its losses say nothing about the recipe.
"""

from collections.abc import Sequence
from pathlib import Path

from mixlab.core.config import Tree, decode, to_tree
from mixlab.core.run_dir import is_run
from mixlab.jobs.config import AnyRunConfig, RefineRunConfig, RunConfig, load_config
from mixlab.nn.language_model import LanguageModelConfig
from mixlab.nn.pattern import Pattern
from mixlab.nn.recursion.refiner import RefinerConfig

D_MODEL = 64
VOCAB_SIZE, SEQ_LEN, MAX_SEQ_LEN = 512, 64, 256
N_STEPS, BATCH_SIZE, EVAL_TOKENS, NEW_TOKENS = 20, 4, 1024, 16
MAX_RUN = 2
"""Neighbouring layers of one block that are kept: enough for a layer to follow its like."""


def load_shrunk(name_or_file: str, overrides: Sequence[str] = ()) -> AnyRunConfig:
    """A recipe, a YAML file or a run's config with its overrides, then shrunk.

    Raises:
        LabError: no such recipe, or it is not valid.
    """
    path = Path(name_or_file)
    source = str(path / "config.yaml") if is_run(path) else name_or_file
    return shrink(load_config(source, overrides))


def shrink(config: AnyRunConfig) -> AnyRunConfig:
    """`config` with smaller widths, fewer layers, shorter sequences and `N_STEPS` updates.

    Kinds, the order of blocks along the depth, ratios such as query heads per key head, and every
    switch stay. A tokenizer that is not trained here keeps its vocabulary. Nothing grows, and
    shrinking twice is shrinking once.
    """
    if isinstance(config, RefineRunConfig):
        return _shrink_refine(config)
    tree = to_tree(config)
    old_len = config.data.seq_len
    # Whole examples have to fit, and a smaller vocabulary makes them longer.
    seq_len = min(old_len, SEQ_LEN if config.data.chat is None else MAX_SEQ_LEN)
    tree["data"]["seq_len"] = seq_len
    vocab_size = _shrink_tokenizer(tree["data"]["tokenizer"], config.model.vocab_size)
    tree["model"] = to_tree(shrink_model(config.model, seq_len / old_len, vocab_size))
    _shrink_training(tree, config)
    if not config.name.endswith("-smoke"):
        tree["name"] = f"{config.name[:90]}-smoke"
    return decode(RunConfig, tree)


def shrink_model(
    model: LanguageModelConfig, len_frac: float, vocab_size: int
) -> LanguageModelConfig:
    """The model alone; `len_frac` is by how much its sequences, and so its windows, get shorter."""
    tree = to_tree(model)
    tree["d_model"] = min(model.d_model, D_MODEL)
    tree["vocab_size"] = vocab_size
    tree["max_seq_len"] = min(model.max_seq_len, MAX_SEQ_LEN)
    layers = _thin_parts(model, tree)
    tree["n_layers"] = len(layers)
    if model.pattern is not None:
        tree["pattern"] = _pattern(model.pattern, layers)
    tree["blocks"] = {
        name: {
            "sequence_mixer": to_tree(block.sequence_mixer.shrunk(len_frac)),
            "channel_mixer": to_tree(block.channel_mixer.shrunk()),
        }
        for name, block in model.blocks.items()
    }
    return decode(LanguageModelConfig, tree)


# --- depth --------------------------------------------------------------------------------------


def _thin(layers: list[str]) -> list[str]:
    """The layers without those that have `MAX_RUN` of their like right before them."""
    return [
        name
        for i, name in enumerate(layers)
        if i < MAX_RUN or any(before != name for before in layers[i - MAX_RUN : i])
    ]


def _thin_parts(model: LanguageModelConfig, tree: Tree) -> list[str]:
    """The layers that are left; of a looped model, each of its parts by itself, looped less."""
    layers, looped = model.layers(), model.recursion
    if looped is None:
        return _thin(layers)
    recursion = tree["recursion"]
    left: list[str] = []
    for part in ("prelude_layers", "core_layers", "coda_layers"):
        whole = recursion[part]
        kept = _thin(layers[:whole])
        layers, recursion[part] = layers[whole:], len(kept)
        left += kept
    depth = recursion["depth"]
    for cycles in ("H_cycles", "L_cycles"):
        recursion[cycles] = min(recursion[cycles], 2)
    n_most = 2 if looped.loops_per_step > 1 else 4  # two cycles of two, twice, are loops enough
    least = (("steps", 2), ("halt_max_steps", n_most), ("halt_min_steps", 2), ("mean", 2.0))
    for steps, most in least:
        if steps in depth:
            depth[steps] = min(depth[steps], most)
    for loops in ("bp_min_loops", "bp_max_loops"):
        if recursion[loops] is not None:
            recursion[loops] = min(recursion[loops], 4)
    ramp = recursion["bp_ramp_updates"]
    recursion["bp_ramp_updates"] = min(ramp, N_STEPS // 2)
    return left


def _pattern(pattern: Pattern, layers: list[str]) -> Tree:
    """The same layers in the words that the recipe uses; `every` may be uneven now: `at`."""
    if pattern.motif is not None:
        return {"motif": layers}
    at = [i for i, name in enumerate(layers) if name == pattern.block]
    return {"block": pattern.block, "at": at, "rest": pattern.rest}


# --- the rest -----------------------------------------------------------------------------------


def _shrink_tokenizer(tokenizer: Tree, model_vocab_size: int) -> int:
    """Rows of the embedding: few for a tokenizer that is trained for the recipe."""
    if tokenizer["kind"] != "bpe":
        return model_vocab_size
    vocab_size = min(tokenizer["vocab_size"], VOCAB_SIZE)
    tokenizer["vocab_size"] = vocab_size
    return min(model_vocab_size, VOCAB_SIZE)


def _shrink_training(tree: Tree, config: AnyRunConfig) -> None:
    train, old = tree["train"], config.train
    n_old = int(old.length.amount) if old.length.unit == "steps" else None
    n_steps = N_STEPS if n_old is None else min(N_STEPS, n_old)
    train["length"] = f"{n_steps} steps"
    n_micro = min(old.n_micro_batches, 2)
    size = min(old.batch_size, BATCH_SIZE)
    train["batch_size"] = max(n_micro, size - size % n_micro)
    if old.micro_batch_size is not None:
        train["micro_batch_size"] = train["batch_size"] // n_micro
    train["bridge"] = None
    train["compile"] = False  # compiling takes longer than the whole smoke run
    warmup = train["schedule"].get("warmup_steps", 0)
    if warmup:
        share = warmup / n_old if n_old else 0.1
        train["schedule"]["warmup_steps"] = max(1, min(warmup, round(share * n_steps)))
    for key in ("eval", "checkpoint"):
        tree[key]["every"] = min(tree[key]["every"], N_STEPS // 2)
    if tree["checkpoint"]["keep_every"] is not None:
        tree["checkpoint"]["keep_every"] = min(tree["checkpoint"]["keep_every"], N_STEPS // 2)
    tree["eval"]["n_tokens"] = min(tree["eval"]["n_tokens"], EVAL_TOKENS)
    tree["eval"]["batch_size"] = min(tree["eval"]["batch_size"], 2 * BATCH_SIZE)
    if "sample" not in tree:
        return
    tree["sample"]["n"] = min(tree["sample"]["n"], 1)
    tree["sample"]["max_new_tokens"] = min(tree["sample"]["max_new_tokens"], NEW_TOKENS)


def shrink_refiner(model: RefinerConfig) -> RefinerConfig:
    """The network alone, narrower; its grid, cycles and switches stay."""
    tree, block = to_tree(model), model.block
    tree["d_model"] = min(model.d_model, D_MODEL)
    tree["block"] = {
        "sequence_mixer": to_tree(block.sequence_mixer.shrunk(1.0)),
        "channel_mixer": to_tree(block.channel_mixer.shrunk()),
    }
    return decode(RefinerConfig, tree)


def _shrink_refine(config: RefineRunConfig) -> RefineRunConfig:
    """A refine run with few puzzles, a narrow network and two segments; the task stays."""
    tree = to_tree(config)
    for key, most in (("n_train", 64), ("n_validation", 8), ("n_test", 8)):
        tree["data"][key] = min(tree["data"][key], most)
    tree["model"] = to_tree(shrink_refiner(config.model))
    halting = tree["model"]["halting"]
    halting["halt_max_steps"] = min(halting["halt_max_steps"], 2)
    halting["halt_min_steps"] = min(halting["halt_min_steps"], 2)
    _shrink_training(tree, config)
    if not config.name.endswith("-smoke"):
        tree["name"] = f"{config.name[:90]}-smoke"
    return decode(RefineRunConfig, tree)
