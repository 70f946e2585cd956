"""What is to be compared: arguments become arms, each with a config and runs by seed.

Runs whose configs differ in the seed alone are one arm. Recipes get the tokens of the first
argument, whatever length they ask for themselves, so that all arms see equally much text.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mixlab.core.config import Tree, digest, read_yaml, to_tree
from mixlab.core.errors import ConfigError, LabError, RunError
from mixlab.core.run_dir import RunDir, is_run
from mixlab.core.units import count
from mixlab.jobs.config import AnyRunConfig, RefineRunConfig, RunConfig, decode_config, load_config
from mixlab.report.comparison_runs import FINISHED, read_run
from mixlab.studies.controls import TOLERANCE, Control
from mixlab.studies.lengths import Costs, with_steps

DEFAULT_SEEDS = 3
MAX_SEEDS = 100
_NO_MATTER = ("name", "about", "seed", "log", "checks", "sample", "checkpoint")
"""Keys of a config in which the runs of one arm may differ."""


@dataclass(frozen=True)
class Arm:
    """One thing to compare: a config, and for each seed the run folder, if there is one yet."""

    name: str
    config: AnyRunConfig  # of its first seed; the length of a recipe is settled in steps
    runs: Mapping[int, Path] = field(default_factory=dict)
    is_trained_here: bool = False
    control_of: str = ""  # the arm that it is a control of
    control: Control | None = None

    def seeded(self, seed: int) -> AnyRunConfig:
        """The config of one seed."""
        return decode_config({**to_tree(self.config), "seed": seed})


def identity(config: AnyRunConfig) -> str:
    """Equal for configs that differ in the seed alone, or in what changes no figure."""
    tree: Tree = {key: value for key, value in to_tree(config).items() if key not in _NO_MATTER}
    tree["train"] = {k: v for k, v in tree["train"].items() if k not in ("device", "threads")}
    tree["eval"] = {"n_tokens": config.eval.n_tokens}
    return digest(tree)


def resolve(
    arguments: Sequence[Any], overrides: Sequence[str], seeds: Sequence[int] | None
) -> tuple[list[Arm], tuple[int, ...]]:
    """The arms in the order of their first argument, and the seeds to compare.

    Raises:
        LabError: an unknown run or recipe, the same thing twice, a run that is not finished, or a
            length that cannot be made equal.
    """
    if not arguments:
        raise LabError(
            "nothing to compare: expected run folders or recipes, such as "
            "`mixlab compare moe moe-recursive` or `mixlab compare runs/a runs/b`."
        )
    arms: list[Arm] = []
    for argument in arguments:
        run = _as_run(argument)
        if run is not None:
            _add_run(arms, run)
        else:
            _add_recipe(arms, argument, overrides)
    recipes = [arm for arm in arms if arm.is_trained_here]
    if overrides and not recipes:
        raise LabError(
            f"override {overrides[0]!r}: expected a recipe among the arguments, since runs are "
            "compared as they are."
        )
    arms = [replace(arm, name=name) for arm, name in zip(arms, _names(arms), strict=True)]
    chosen = _seeds(arms, seeds)
    return _equal_tokens(arms), chosen


# --- arguments ----------------------------------------------------------------------------------


def _as_run(argument: Any) -> Path | None:
    """The run folder that an argument stands for; None for a recipe."""
    path = getattr(argument, "path", argument)  # a mixlab.Run has one
    if isinstance(path, RunConfig | RefineRunConfig):
        return None
    if not isinstance(path, str | Path) or not str(path):
        raise LabError(
            f"{argument!r}: expected a run folder, a recipe, a YAML file, or what mixlab.recipe() "
            "or mixlab.open_run() returns."
        )
    path = Path(path)
    if is_run(path):
        return path
    if path.is_dir() or (path.parent.name and path.suffix not in (".yaml", ".yml")):
        RunDir.open(path)  # raises, and names the nearest run
    return None


def _add_run(arms: list[Arm], path: Path) -> None:
    file = RunDir(path).config_path
    try:
        config = decode_config(read_yaml(file))
    except ConfigError as error:
        raise RunError(f"{file} is no config of a run: {error}") from None
    read_run(path)  # raises where there is nothing to compare
    for i, arm in enumerate(arms):
        if arm.is_trained_here or identity(arm.config) != identity(config):
            continue
        if config.seed in arm.runs:
            other = arm.runs[config.seed]
            if other.resolve() == path.resolve():
                raise LabError(f"{path} is given twice: expected different runs.")
            raise LabError(
                f"{other} and {path} are the same run made twice (equal config, seed "
                f"{config.seed}): expected other seeds or other configs. Leave one out."
            )
        arms[i] = replace(arm, runs={**arm.runs, config.seed: path})
        return
    arms.append(Arm(path.resolve().name, config, {config.seed: path}))


def _add_recipe(arms: list[Arm], argument: Any, overrides: Sequence[str]) -> None:
    if isinstance(argument, RunConfig | RefineRunConfig):
        if overrides:
            raise LabError(
                f"overrides = {list(overrides)!r}: expected none beside a config. Give them to "
                "mixlab.recipe()."
            )
        config = argument
    else:
        try:
            config = load_config(str(argument), overrides)
        except ConfigError:
            raise
        except LabError as error:
            if "recipe = " not in str(error):
                raise
            raise LabError(f"{error} A run is given by its folder, such as runs/{argument}.") from (
                None
            )
    for arm in arms:
        if arm.is_trained_here and identity(arm.config) == identity(config):
            twice = "given twice" if arm.name == config.name else f"the same as {arm.name}"
            raise LabError(f"{config.name} is {twice}: expected arms that differ.")
    arms.append(Arm(config.name, config, is_trained_here=True))


def _names(arms: Sequence[Arm]) -> list[str]:
    """A name for each arm: a recipe's own, a run's folder; several runs' common recipe."""
    wanted = [
        arm.config.name if arm.is_trained_here or len(arm.runs) > 1 else arm.name for arm in arms
    ]
    if len(set(wanted)) < len(wanted):
        wanted = [
            str(next(iter(arm.runs.values()))) if wanted.count(name) > 1 and arm.runs else name
            for arm, name in zip(arms, wanted, strict=True)
        ]
    twice = next((name for name in wanted if wanted.count(name) > 1), None)
    if twice is not None:
        raise LabError(
            f"two different recipes are called {twice}: expected different names. Set `name:` in "
            "one of the files."
        )
    return wanted


# --- what is held equal -------------------------------------------------------------------------


def _seeds(arms: Sequence[Arm], seeds: Sequence[int] | None) -> tuple[int, ...]:
    """The seeds of the comparison: those asked for, those of the runs, or the first three."""
    if seeds is not None:
        chosen = tuple(seeds)
        if not chosen or len(set(chosen)) < len(chosen) or len(chosen) > MAX_SEEDS:
            raise LabError(f"seeds = {list(seeds)}: expected 1 to {MAX_SEEDS} different numbers.")
        bad = next((s for s in chosen if not (isinstance(s, int) and 0 <= s < 2**32)), None)
        if bad is not None:
            raise LabError(f"seeds = {list(seeds)}: expected numbers from 0 to 2**32 - 1.")
        for arm in arms:
            if not arm.is_trained_here and not set(chosen) & set(arm.runs):
                raise LabError(
                    f"seeds = {list(chosen)}: expected one of those of {arm.name}, "
                    f"{', '.join(map(str, sorted(arm.runs)))}, since runs are compared as they are."
                )
        return chosen
    known = sorted({seed for arm in arms for seed in arm.runs})
    return tuple(known) or tuple(range(1, DEFAULT_SEEDS + 1))


def _equal_tokens(arms: list[Arm]) -> list[Arm]:
    """Recipes with their length settled to the tokens of the first arm."""
    if not any(arm.is_trained_here for arm in arms):
        return arms
    tokens = _tokens(arms[0])
    settled = []
    for arm in arms:
        if not arm.is_trained_here:
            settled.append(arm)
            continue
        per_step = arm.config.tokens_per_step
        n_steps = max(1, round(tokens / per_step))
        if abs(n_steps * per_step / tokens - 1) > TOLERANCE:
            raise LabError(
                f"train.batch_size of {arm.name}: its updates of {count(per_step)} tokens cannot "
                f"make the {count(tokens)} tokens of {arms[0].name}. Train longer, or use batches "
                "of one size."
            )
        settled.append(replace(arm, config=with_steps(arm.config, n_steps)))
    return settled


def _tokens(arm: Arm) -> int:
    """What the first arm is trained on."""
    if not arm.is_trained_here:
        return read_run(next(iter(arm.runs.values()))).tokens
    length = arm.config.train.length
    if length.unit == "seconds":
        raise ConfigError(
            "train.length", str(length), "steps, tokens or FLOPs, since the arms are compared at "
            "equal tokens", 'Add, for example, train.length="200 steps".',
        )  # fmt: skip
    costs = Costs.of(arm.config, None)
    return length.n_steps(costs.tokens, costs.flops / costs.tokens, None) * costs.tokens


def unfinished(runs: Iterable[Path]) -> list[Path]:
    """Of these folders those that hold no finished run."""
    return [
        path
        for path in runs
        if not is_run(path) or (RunDir(path).read_json("summary.json") or {}).get("status")
        not in FINISHED
    ]  # fmt: skip
