"""The study file: what a person writes down before anything is trained.

A study is a base recipe, arms that change it by name, what is held equal between them, seeds, and
how the learning rate of each arm is found. Reading one needs no torch; `design.py` works out what
it means.
"""

from itertools import count
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from mixlab.core.config import Config, Tree, decode, to_tree
from mixlab.core.errors import ConfigError, LabError, Rule
from mixlab.core.packaged import Packaged
from mixlab.studies.arms import Changes, arm_specs
from mixlab.studies.runner import RunnerConfig
from mixlab.training.length import Length

_STUDIES = Packaged("study", "studies/packaged")
LENGTHS = ("tokens", "steps", "flops", "seconds")
SIZES = ("params", "active_params")
TOLERANCE = 0.01
"""Share by which the realised values of a matched quantity may differ between arms."""
MAX_SEEDS = 1000
MAX_SEED = 2**32
"""Seeds lie below."""

Matched = Literal["tokens", "steps", "flops", "seconds", "params", "active_params"]


class BudgetConfig(Config):
    """How long each run is, and how much all of them may cost."""

    per_run: Length | None = None
    """Length of each run: steps, tokens, FLOPs or time; absent: that of the base recipe."""
    total: Length | None = None
    """What all runs together may cost, in the same units; absent: no limit."""


class TuneConfig(Config):
    """A search for the learning rate of each arm, on a grid of factors of 2."""

    seeds: list[int] | None = None
    """Seeds that tuning runs with; absent: one that the study does not use otherwise."""
    max_runs: int = Field(default=9, ge=4, le=100)
    """Rates that are tried at most before the search ends with the best at the edge."""


class StudyFile(Config):
    """Everything that a study file says."""

    name: str = Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the study's folder; absent: the file's name."""
    about: str = ""
    """The question that the study asks, where it comes from, what is uncertain."""
    base: str = Field(min_length=1)
    """The recipe, YAML file or run folder that every arm begins from."""
    changes: Changes = Field(default_factory=dict)
    """Laid over the base for all arms; dotted or nested keys."""
    arms: dict[str, Changes] = Field(default_factory=dict)
    """Named changes. `recipe: NAME` begins that arm from another recipe."""
    grid: dict[str, list[Any] | dict[str, Any]] = Field(default_factory=dict)
    """Key -> values: an arm for each combination, with each of `arms` where there are any."""
    baseline: str | None = None
    """The arm that runs first and that others are compared with; absent: the first."""
    match: list[Matched] = Field(default=["tokens"])
    """What is held equal: at most one of tokens, steps, flops, seconds, and at most one of params,
    active_params."""
    solve: Literal["d_ff", "d_model", "head_dim"] = "d_ff"
    """What is changed to reach equal params: feed-forward width, model width, or head size."""
    budget: BudgetConfig = BudgetConfig()
    """How long each run is, and what all may cost; a bare length is that of each run."""
    seeds: list[int] = Field(default=[1, 2, 3], min_length=1, max_length=MAX_SEEDS)
    """Seeds that every arm runs with, or their number."""
    screen: list[PositiveInt] | None = None
    """Sequential halving: after so many seeds the better half goes on, such as [1, 3, 8]."""
    tune: TuneConfig | None = None
    """`learning_rate`, or settings: tune the rate of each arm; absent: take the recipes' rates."""
    metric: str = "validation.loss_nats"
    """The figure that arms are ranked by."""
    effect: PositiveFloat | None = None
    """The smallest difference that matters, in units of the metric; the report says how many seeds
    would find it."""
    published: bool = False
    """The arms as somebody published them, unmatched or with one seed: a record, not a test."""
    keep: Literal["last", "all", "none"] = "last"
    """Checkpoints that stay when a run is done: last and best, all, or none."""
    smoke: Changes = Field(default_factory=dict)
    """Changes for `--smoke`, after sizes have been shrunk; and, if given, its own `seeds`, `tune`
    and `screen`, instead of the first 3 seeds, no tuning and no screening."""
    runner: RunnerConfig = RunnerConfig()
    """Where the runs are made."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        tree = dict(tree)
        match = tree.get("match")
        if isinstance(match, str):
            tree["match"] = [match]
        if isinstance(tree.get("budget"), str | int | float):
            tree["budget"] = {"per_run": tree["budget"]}
        if isinstance(tree.get("arms"), dict):  # `plain:` without a value changes nothing
            tree["arms"] = {n: {} if own is None else own for n, own in tree["arms"].items()}
        seeds = tree.get("seeds")
        if "seeds" in tree and (isinstance(seeds, bool) or not isinstance(seeds, int | list)):
            raise Rule("seeds", seeds, "a number of seeds such as 3, or a list such as [1, 2, 3]")
        if isinstance(seeds, int) and not isinstance(seeds, bool):
            if not 1 <= seeds <= MAX_SEEDS:
                raise Rule("seeds", seeds, f"a number of seeds from 1 to {MAX_SEEDS}, or a list")
            tree["seeds"] = list(range(1, seeds + 1))
        if tree.get("tune") == "learning_rate":
            tree["tune"] = {}
        elif not isinstance(tree.get("tune"), dict | TuneConfig | None):
            raise Rule("tune", tree["tune"], "learning_rate, or settings such as {max_runs: 9}")
        return tree

    @model_validator(mode="after")
    def _fits(self) -> "StudyFile":
        _check_seeds("seeds", self.seeds)
        if self.tune is not None and self.tune.seeds is not None:
            _check_seeds("tune.seeds", self.tune.seeds)
        for group in (LENGTHS, SIZES):
            chosen = [name for name in self.match if name in group]
            if len(chosen) > 1:
                raise Rule("match", self.match, f"at most one of {', '.join(group)}")
        if self.solve != "d_ff" and self.matched_size is None:
            raise Rule(
                "solve", self.solve, f"match to name {' or '.join(SIZES)}, which it reaches",
                "Write match: [tokens, params], or leave solve out.",
            )  # fmt: skip
        if not self.arms and not self.grid:
            raise Rule("arms", None, "arms, a grid, or both: there is nothing to compare")
        for key, values in self.grid.items():
            if not values:
                raise Rule(f"grid.{key}", values, "at least one value")
        rungs = self.screen
        if rungs is not None and (
            rungs != sorted(set(rungs)) or not rungs or rungs[-1] != len(self.seeds)
        ):
            raise Rule(
                "screen", rungs,
                f"growing numbers of seeds up to the {len(self.seeds)} of the study, such as "
                "[1, 3, 8] of 8 seeds",
            )  # fmt: skip
        return self

    @property
    def matched_length(self) -> str:
        """The quantity that sets the length of each arm."""
        return next((name for name in self.match if name in LENGTHS), "tokens")

    @property
    def matched_size(self) -> str | None:
        """The quantity that sets the size of each arm's model, if one does."""
        return next((name for name in self.match if name in SIZES), None)

    @property
    def tuning_seeds(self) -> list[int]:
        """Seeds of the tuning runs: by default one that ranks nothing, so that no arm gains by it.

        The best of several rates on a seed is partly luck with that seed.
        """
        if self.tune is None:
            return []
        unused = (seed for seed in count(max(self.seeds) + 1) if seed % MAX_SEED not in self.seeds)
        return self.tune.seeds or [next(unused) % MAX_SEED]


SMOKE_SEEDS = 3
_OF_THE_STUDY = ("seeds", "tune", "screen")


def smoke_study(study: StudyFile) -> StudyFile:
    """The study as `--smoke` runs it: all arms with the first seeds; no tuning, no screening."""
    own = {key: study.smoke[key] for key in _OF_THE_STUDY if key in study.smoke}
    changes = {key: value for key, value in study.smoke.items() if key not in _OF_THE_STUDY}
    tree = {**to_tree(study), "seeds": study.seeds[:SMOKE_SEEDS], "screen": None, "tune": None}
    try:
        return decode(StudyFile, {**tree, **own, "smoke": changes})
    except ConfigError as error:
        raise LabError(f"smoke.{error}") from None


def _check_seeds(field: str, seeds: list[int]) -> None:
    if not seeds:
        raise Rule(field, seeds, "at least one seed")
    repeated = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if repeated:
        raise Rule(
            field, seeds, f"every seed once, but {repeated[0]} is given {seeds.count(repeated[0])} "
            "times", "The same seed gives the same run, which would count as two.",
        )  # fmt: skip
    for seed in seeds:
        if not 0 <= seed < MAX_SEED:
            raise Rule(field, seed, "seeds from 0 to 2**32 - 1")


# --- finding and reading ------------------------------------------------------------------------


def packaged_studies() -> list[str]:
    """The names of the studies that come with mixlab."""
    return _STUDIES.names()


def load_study(name_or_file: str) -> StudyFile:
    """A packaged study or a YAML file, validated.

    Raises:
        LabError: no such study, an unknown key, or a value that breaks a rule.
    """
    tree = study_tree(name_or_file)
    study = decode(StudyFile, tree)
    arm_specs(study)
    smoke_study(study)
    return study


def study_tree(name_or_file: str) -> Tree:
    """The tree of a study file with its name filled in."""
    return _STUDIES.find(name_or_file)[0]
