"""What a refine recipe is made of and what it costs, worked out from formulas alone."""

from mixlab.core import units
from mixlab.core.config import dump_yaml, to_tree
from mixlab.jobs.config import RefineRunConfig
from mixlab.jobs.show import Description
from mixlab.nn.recursion.refiner import refiner_budget
from mixlab.nn.recursion.whole_row import whole_row_flops_per_token, whole_row_params


def describe_refiner(config: RefineRunConfig) -> Description:
    """Explain a config of kind refine."""
    model, train = config.model, config.train
    budget, halting = refiner_budget(model), model.halting
    all_segments = budget.segment_flops * halting.halt_max_steps
    length = train.length
    steps = str(length)
    if length.unit != "seconds":
        n_steps = length.n_steps(config.tokens_per_step, budget.train_flops_per_token, None)
        flops = n_steps * config.tokens_per_step * budget.train_flops_per_token
        steps = f"{n_steps:,} steps = {units.flops(flops)} FLOPs"
    facts = [
        ("parameters", f"{budget.n_params:,}"),
        ("active per position", f"{budget.n_active_params:,}"),
        ("layers run by a segment", f"{model.n_layers}, those of {model.grad_cycles} of "
                                    f"{model.H_cycles} cycles with gradient"),
        ("segments", f"{halting.halt_min_steps} to {halting.halt_max_steps}, "
                     f"halting {halting.kind}"),
        ("effective depth", f"{model.n_layers * halting.halt_max_steps} layers"),
        ("FLOPs per puzzle", f"{units.flops(budget.segment_flops)} per segment, "
                             f"{units.flops(all_segments)} in all"),
        ("training FLOPs per puzzle", f"{units.flops(budget.train_segment_flops)} per segment"),
        ("puzzles per step", f"{train.batch_size:,}"),
        ("length", steps),
        ("task", f"{config.data.task.name}, {config.data.n_train:,} training puzzles"
                 + (", augmented" if config.data.augment else "")),
        ("optimizer", f"{train.optimizer.kind}, peak rate {train.optimizer.lr:g}, "
                      f"schedule {train.schedule.kind}"),
    ]  # fmt: skip
    return Description(
        name=config.name,
        about=" ".join(config.about.split()),
        facts=facts,
        layers=_layer_rows(config),
        yaml=dump_yaml(to_tree(config)),
        exports=[("stock formats", "none: they hold models that write text, not puzzles")],
    )


def _layer_rows(config: RefineRunConfig) -> list[tuple[str, ...]]:
    model = config.model
    mixer, channel = model.block.sequence_mixer, model.block.channel_mixer
    n_positions = model.length + model.num_registers
    n_params = whole_row_params(mixer, model.d_model, n_positions) + channel.n_params(model.d_model)
    flops = whole_row_flops_per_token(mixer, model.d_model, n_positions)
    flops += channel.flops_per_token(model.d_model)
    rows = []
    nets = [("L" if model.H_layers else "L and H", model.L_layers), ("H", model.H_layers)]
    for name, n_layers in nets:
        if n_layers:
            span = f"0-{n_layers - 1}" if n_layers > 1 else "0"
            rows.append(
                (span, name, mixer.kind, channel.kind, f"{n_params:,}", units.count(flops), "-")
            )
    return rows
