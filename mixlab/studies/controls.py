"""The controls of a recursive model: what a gain has to be held against before recursion gets it.

    same-params   the model without its recursion: as many parameters, less compute
    same-flops    without recursion and deeper, all layers untied: as much compute, more parameters
    same-time     the model without recursion, trained as long by the clock
    fixed-steps   the recursive model with a fixed number of steps in place of learned halting

A recursive model that beats the first but not the second shows that compute helps, not recursion
(HRM and TRM were read wrongly in that way: arcprize.org/blog/hrm-analysis).
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mixlab.core.config import Tree, to_tree
from mixlab.jobs.config import AnyRunConfig, RefineRunConfig, RunConfig, decode_config
from mixlab.nn.recursion.looped import LoopedConfig
from mixlab.studies.sizes import budget_of
from mixlab.training.length import Length

TOLERANCE = 0.01
"""Relative distance within which a quantity counts as matched."""
_WIDTHS = ("d_ff", "d_expert")
_ENOUGH = 0.002
"""Relative distance in FLOPs at which a rounder width is taken."""


class ControlKind(NamedTuple):
    """One of the four questions."""

    key: str
    title: str
    matched: str  # the quantity that is equal


KINDS = (
    ControlKind("same-params", "same parameters, no recursion", "parameters"),
    ControlKind("same-flops", "same FLOPs, deeper and untied", "FLOPs"),
    ControlKind("same-time", "same training time, no recursion", "seconds of updates"),
    ControlKind("fixed-steps", "fixed steps, no learned halting", "parameters"),
)


class Control(NamedTuple):
    """A control of one model: its config, or why there is none."""

    kind: ControlKind
    config: AnyRunConfig | None
    reason: str = ""  # why there is none

    @property
    def waits(self) -> bool:
        """Whether its length depends on a measured time."""
        return self.kind.key == "same-time"


def is_recursive(config: AnyRunConfig) -> bool:
    """Whether some of its layers run more than once."""
    if isinstance(config, RunConfig):
        return config.model.recursion is not None
    return config.model.n_layers > config.model.L_layers + config.model.H_layers or (
        config.model.halting.halt_max_steps > 1
    )


def controls_of(config: AnyRunConfig) -> list[Control]:
    """The four controls, in order. That of the time has the length of `config` until it is set."""
    assert is_recursive(config)
    plain = _named(without_recursion(config), config, "same-params")
    timed = _named(plain, config, "same-time")
    fixed, reason = fixed_steps(config)
    configs = (plain, deeper(config), timed, fixed)
    return [
        Control(kind, made, reason if made is None else "")
        for kind, made in zip(KINDS, configs, strict=True)
    ]


def without_recursion(config: AnyRunConfig) -> AnyRunConfig:
    """The same layers, each run once."""
    tree = to_tree(config)
    if isinstance(config, RunConfig):
        tree["model"]["recursion"] = None
        return decode_config(tree)
    tree["model"] = _single_pass(config)
    return decode_config(tree)


def deeper(config: AnyRunConfig) -> AnyRunConfig:
    """Without recursion, with as many different layers as cost the same FLOPs in training.

    Of a looped model the core is repeated, each repeat with weights of its own; whole layers are
    added, and what is left is made up by the width of the channel mixers.
    """
    target = _flops(config)
    tree = to_tree(without_recursion(config))
    best: tuple[float, Tree] | None = None
    for candidate in _deeper_trees(config, tree):
        flops = _flops(decode_config(candidate))
        gap = abs(flops / target - 1)
        if best is None or gap < best[0]:
            best = (gap, candidate)
        if flops > target:
            break
    assert best is not None
    return _named(decode_config(_fitted_width(best[1], target)), config, "same-flops")


def fixed_steps(config: AnyRunConfig) -> tuple[AnyRunConfig | None, str]:
    """The mean number of steps for everybody, and no halting head; or why that is no control."""
    tree = to_tree(config)
    if isinstance(config, RunConfig):
        recursion = config.model.recursion
        assert recursion is not None
        if recursion.halting.kind != "gate":
            return None, f"its halting is `{recursion.halting.kind}`, for which nothing is learned"
        steps = max(2, round(recursion.depth.mean_steps))
        tree["model"]["recursion"]["halting"] = {"kind": "fixed"}
        tree["model"]["recursion"]["depth"] = {"kind": "fixed", "steps": steps}
        tree["model"]["recursion"] = to_tree(
            LoopedConfig.model_validate(tree["model"]["recursion"])
        )
    else:
        halting = config.model.halting
        if halting.kind == "fixed":
            return None, "its halting is `fixed`, for which nothing is learned"
        tree["model"]["halting"] = {"kind": "fixed", "halt_max_steps": halting.halt_max_steps}
    return _named(decode_config(tree), config, "fixed-steps"), ""


def with_seconds(control: AnyRunConfig, n_steps: int, of: AnyRunConfig) -> AnyRunConfig:
    """The control of the time, for so many updates; evaluated as often as the run it is held to."""
    ratio = max(1.0, n_steps / of.train.length.amount)
    tree = to_tree(control)
    tree["train"]["length"] = str(Length(n_steps, "steps"))
    tree["eval"]["every"] = max(1, round(of.eval.every * ratio))
    return decode_config(tree)


# --- how they are made --------------------------------------------------------------------------


def _single_pass(config: RefineRunConfig) -> Tree:
    """One pass of the same network, which reads the question in place of its first states."""
    tree = to_tree(config)["model"]
    tree |= {"H_cycles": 1, "L_cycles": 1 if config.model.H_layers else 0, "grad_cycles": 1,
             "state_init": "input", "halting": {"kind": "fixed", "halt_max_steps": 1}}  # fmt: skip
    return tree


def _deeper_trees(config: AnyRunConfig, plain: Tree) -> Iterator[Tree]:
    """The plain model with more and more layers."""
    if isinstance(config, RunConfig):
        recursion = config.model.recursion
        assert recursion is not None
        names = config.model.layers()
        start = recursion.prelude_layers
        core = names[start : start + recursion.core_layers]
        coda = names[start + recursion.core_layers :]
        for n in range(len(core), 1000 - start - len(coda)):
            repeated = [core[i % len(core)] for i in range(n)]
            layers = [*names[:start], *repeated, *coda]
            pattern = layers if len(set(layers)) > 1 else None
            model = {**plain["model"], "n_layers": len(layers), "pattern": pattern}
            yield {**plain, "model": model}
        return
    n_first = config.model.L_layers + config.model.H_layers
    for n in range(n_first, 1000):
        model = {**plain["model"], "L_layers": n, "H_layers": 0, "L_cycles": 0}
        yield {**plain, "model": model}


def _fitted_width(tree: Tree, target: float) -> Tree:
    """The tree with its channel mixers widened or narrowed to the wanted FLOPs."""
    widths = list(_channel_widths(tree["model"]))
    if not widths or abs(_flops(decode_config(tree)) / target - 1) <= _ENOUGH:
        return tree
    largest = max(node[key] for node, key in widths)
    best: tuple[float, Tree] = (abs(_flops(decode_config(tree)) / target - 1), tree)
    for step in (8, 4, 2, 1):
        for width in range(max(step, largest // 2 // step * step), 2 * largest + step, step):
            changed = _rescaled(tree, lambda old, w=width: max(1, round(old * w / largest)))
            gap = abs(_flops(decode_config(changed)) / target - 1)
            if gap < best[0]:
                best = (gap, changed)
        if best[0] <= _ENOUGH:
            break
    return best[1]


def _channel_widths(node: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Every (mapping, key) that holds the width of a channel mixer."""
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key == "channel_mixer" and isinstance(value, dict):
            yield from ((value, width) for width in _WIDTHS if isinstance(value.get(width), int))
        else:
            yield from _channel_widths(value)


def _rescaled(tree: Tree, scale: Callable[[int], int]) -> Tree:
    """A copy with every channel width scaled."""

    def copy(node: Any) -> Any:
        return {key: copy(value) for key, value in node.items()} if isinstance(node, dict) else node

    changed = copy(tree)
    for node, key in _channel_widths(changed["model"]):
        node[key] = scale(node[key])
    return changed


def _flops(config: AnyRunConfig) -> float:
    """FLOPs of one update, by formula."""
    return budget_of(config).train_flops_per_token * config.tokens_per_step


def _named(made: AnyRunConfig, of: AnyRunConfig, key: str) -> AnyRunConfig:
    name = f"{of.name[: 99 - len(key)]}-{key}"
    title = next(kind.title for kind in KINDS if kind.key == key)
    tree = {**to_tree(made), "name": name, "about": f"A control of {of.name}: {title}."}
    return decode_config(tree)
