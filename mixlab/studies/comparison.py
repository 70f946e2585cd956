"""Compare runs and recipes: train what is missing, hold it to equal ground, say what follows.

comparison.json            what is compared; a second call with the same folder goes on
jobs/ADDRESS/done/run      the runs that were made here
arms/NAME/seed-1           links to them
comparison_summary.json    every figure, test and verdict
comparison_plots.png       loss or accuracy by steps, tokens, FLOPs and seconds
"""

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixlab.core.config import digest, to_tree
from mixlab.core.errors import LabError, RunError
from mixlab.core.json_files import read_json, write_json
from mixlab.data.progress import Silent
from mixlab.jobs.config import AnyRunConfig
from mixlab.jobs.kinds import kind_of
from mixlab.report.comparison import write_comparison_plots
from mixlab.report.comparison_runs import RunFigures, read_run
from mixlab.report.comparison_text import comparison_text
from mixlab.stats import require_stats
from mixlab.studies.comparison_arms import Arm, identity, resolve
from mixlab.studies.comparison_ground import Metric, choose_metric, ground, run_labels
from mixlab.studies.comparison_making import Maker, plain_name, read_runs
from mixlab.studies.comparison_memory import Memory, asked_before, words_of
from mixlab.studies.comparison_summary import find_controls, summarise
from mixlab.studies.controls import Control, controls_of, is_recursive, with_seconds
from mixlab.studies.progress import PlainStudyScreen
from mixlab.studies.runner import RunnerConfig

if TYPE_CHECKING:
    from mixlab.jobs.screen import Screen
    from mixlab.studies.progress import StudyScreen

COMPARISONS = Path("comparisons")
SUMMARY, PLOTS = "comparison_summary.json", "comparison_plots.png"


@dataclass(frozen=True)
class Comparison:
    """A finished comparison: its folder and everything that was found."""

    folder: Path
    summary: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The tables and verdicts that `mixlab compare` prints."""
        return comparison_text(self.summary)

    @property
    def plots(self) -> Path:
        """The picture."""
        return self.folder / PLOTS


def compare(
    *arguments: Any,
    overrides: Sequence[str] = (),
    seeds: int | Sequence[int] | None = None,
    output: str | Path | None = None,
    controls: bool = False,
    workers: int | None = None,
) -> Comparison:
    """Compare run folders and recipes; the first is the baseline.

    Recipes are trained first: on the tokens of the first argument, with the same batches for each
    seed. Runs whose configs differ in the seed alone are one arm. With `controls`, the controls of
    every recursive arm are trained as well. The same call again goes on where it stopped.

    Args:
        arguments: run folders, names of recipes, YAML files, configs, or `mixlab.Run`s.
        overrides: `key=value` texts for all recipes.
        seeds: how many (1, 2, 3, ...), or which; absent: those of the runs, or 3.
        output: the folder; absent: comparisons/A-vs-B.
        workers: runs at once; absent: one per GPU, or per core.

    Raises:
        LabError: anything that the user can set right, before compute is spent where possible.
    """
    prepared = prepare_comparison(
        arguments, overrides=overrides, seeds=seeds, output=output, controls=controls,
        workers=workers,
    )  # fmt: skip
    told = PlainStudyScreen(lambda text: print(text, file=sys.stderr, flush=True), time.monotonic)
    return run_comparison(prepared, told)


@dataclass(frozen=True)
class Prepared:
    """A comparison that has been looked at and may begin."""

    folder: Path
    arms: list[Arm]
    seeds: tuple[int, ...]
    metric: Metric
    labels: list[str]
    memory: Memory
    workers: int | None
    command: str
    controls_command: str


def prepare_comparison(
    arguments: Sequence[Any],
    *,
    overrides: Sequence[str] = (),
    seeds: int | Sequence[int] | None = None,
    output: str | Path | None = None,
    controls: bool = False,
    workers: int | None = None,
    screen: "Screen | None" = None,
    command: str = "mixlab.compare(...)",
) -> Prepared:
    """Everything that can be refused, before compute is spent; see `compare`."""
    require_stats("mixlab compare")
    if not arguments and output is not None:
        arguments, overrides, seeds = asked_before(Path(output), overrides, seeds)
    wanted = range(1, seeds + 1) if isinstance(seeds, int) else seeds
    arms, chosen = resolve(arguments, overrides, None if wanted is None else list(wanted))
    _require_something(arms, controls)
    folder = Path(output) if output is not None else COMPARISONS / _folder_name(arms)
    asked = {"arguments": words_of(arguments), "overrides": list(overrides)}
    memory = Memory(folder, arms, chosen, controls, asked)
    manifests = _manifests(arms, memory.has_controls, screen)
    metric, labels = choose_metric(
        {arm.name: ground(to_tree(arm.config), manifests[arm.name]) for arm in arms}
    )
    again = f"mixlab compare --controls -o {shlex.quote(str(folder))}"
    return Prepared(folder, arms, chosen, metric, labels, memory, workers, command, again)


def run_comparison(prepared: Prepared, study_screen: "StudyScreen") -> Comparison:
    """Train what is missing, and write what was found.

    Raises:
        LabError: an arm failed with every seed, or no run can go on.
        InterruptedStudyError: stopped by a signal; the same again goes on.
    """
    folder, chosen, memory = prepared.folder, prepared.seeds, prepared.memory
    arms = list(prepared.arms)
    recursive = [arm for arm in arms if is_recursive(arm.config)]
    planned = {arm.name: controls_of(arm.config) for arm in recursive}
    memory.save()
    maker = Maker(folder, chosen, RunnerConfig(workers=prepared.workers), study_screen)
    if memory.has_controls:
        arms += _control_arms(arms, recursive, planned)
        if any(arm.name not in memory.content["same_time"] for arm in recursive):
            study_screen.note("Timing the models with and without recursion side by side.")
        arms += _timed_arms(recursive, planned, memory)
    arms, failures = maker.make(arms)
    runs = read_runs(arms, chosen)
    arms = _without_failed(arms, runs, failures)
    found = {
        arm.name: find_controls(arm, planned[arm.name], arms, runs)
        for arm in arms
        if arm.name in planned
    }
    labels = [*prepared.labels, *run_labels(arms[0].name, runs), *failures]
    summary = summarise(
        arms, runs, found, prepared.metric, labels,
        documents=maker.documents(arms, runs, chosen), command=prepared.command,
        speeds=memory.content["same_time"], controls_command=prepared.controls_command,
        saw_the_same=maker.saw_the_same(arms),
    )  # fmt: skip
    write_json(folder / SUMMARY, summary)
    write_comparison_plots(summary, folder / PLOTS)
    return Comparison(folder, summary)


# --- before compute is spent --------------------------------------------------------------------


def _require_something(arms: Sequence[Arm], controls: bool) -> None:
    recursive = [arm for arm in arms if is_recursive(arm.config)]
    if controls and not recursive:
        names = ", ".join(arm.name for arm in arms)
        raise LabError(
            f"--controls: expected a recursive run or recipe, such as moe-recursive; of {names} "
            "none runs a layer more than once."
        )
    if len(arms) == 1 and not controls:
        n = len(arms[0].runs)
        seeds = f", {n} runs of it" if n > 1 else ""
        way_out = " Or add --controls." if recursive else ""
        raise LabError(
            f"only {arms[0].name} was given{seeds}: expected two or more that differ in more than "
            f"the seed.{way_out}"
        )


def _folder_name(arms: Sequence[Arm]) -> str:
    if len(arms) == 1:
        return f"{plain_name(arms[0].name)}-controls"
    return "-vs-".join(plain_name(arm.name) for arm in arms)[:120]


def _manifests(
    arms: Sequence[Arm], has_controls: bool, screen: "Screen | None"
) -> dict[str, Mapping[str, Any]]:
    """What each arm is trained on: of runs as recorded, of recipes and controls prepared now.

    Raises:
        LabError: no text, or controls of a run whose text is not there any more.
    """
    prepared: dict[str, Mapping[str, Any]] = {}

    def now(config: AnyRunConfig) -> Mapping[str, Any]:
        key = digest([to_tree(config.data), config.model.vocab_size, config.train.batch_size])
        if key not in prepared:
            prepared[key] = kind_of(config).prepare_data(config, screen or Silent()).manifest
        return prepared[key]

    found = {}
    for arm in arms:
        found[arm.name] = _recorded(arm) if arm.runs else now(arm.config)
        if not (has_controls and arm.runs and is_recursive(arm.config)):
            continue
        tree = to_tree(arm.config)
        if ground(tree, now(arm.config)) != ground(tree, found[arm.name]):
            raise RunError(
                f"{next(iter(arm.runs.values()))}: was trained on text that is not there any more "
                "(its data.json says another content), so its controls would see other text. "
                "Restore the text, or train the recipe anew: mixlab compare --controls RECIPE."
            )
    return found


def _recorded(arm: Arm) -> Mapping[str, Any]:
    found = {path: read_run(path).data for path in arm.runs.values()}
    (first_path, first), *others = found.items()
    for path, data in others:
        if data.get("content_hash") != first.get("content_hash"):
            raise RunError(
                f"{first_path} and {path}: have one config, but were trained on different text. "
                "Compare them by giving only one of them."
            )
    return first


# --- controls -----------------------------------------------------------------------------------


def _control_arms(
    arms: Sequence[Arm], recursive: Sequence[Arm], planned: Mapping[str, Sequence[Control]]
) -> list[Arm]:
    """Controls that can be made at once and that no arm is already."""
    known = {identity(arm.config) for arm in arms}
    made = []
    for arm in recursive:
        for control in planned[arm.name]:
            if control.config is None or control.waits or identity(control.config) in known:
                continue
            made.append(_control_arm(arm, control, control.config))
    return made


def _control_arm(of: Arm, control: Control, config: AnyRunConfig) -> Arm:
    name = f"{of.name}-{control.kind.key}"
    return Arm(name, config, is_trained_here=True, control_of=of.name, control=control)


def _timed_arms(
    recursive: Sequence[Arm], planned: Mapping[str, Sequence[Control]], memory: Memory
) -> list[Arm]:
    """The controls of the time; the speeds with and without recursion are measured in turn."""
    made = []
    for arm in recursive:
        timed = next(control for control in planned[arm.name] if control.waits)
        assert timed.config is not None
        n_steps = int(memory.same_time(arm, timed.config)["steps"])
        made.append(_control_arm(arm, timed, with_seconds(timed.config, n_steps, arm.config)))
    return made


def _without_failed(
    arms: Sequence[Arm], runs: Mapping[str, Sequence[RunFigures]], failures: Sequence[str]
) -> list[Arm]:
    """The arms that have a run. A control may lack; an arm that was asked for may not.

    Raises:
        LabError: an arm failed with every seed.
    """
    for arm in arms:
        if arm.name not in runs and not arm.control_of:
            why = next((text for text in failures if text.startswith(f"{arm.name}, ")), "")
            raise LabError(f"{arm.name}: failed with every seed, so nothing compares. {why}")
    return [arm for arm in arms if arm.name in runs]


def open_comparison(folder: str | Path) -> Comparison:
    """A comparison that was made before.

    Raises:
        LabError: there is none.
    """
    found = read_json(Path(folder) / SUMMARY)
    if not isinstance(found, dict):
        raise LabError(
            f"{folder}: holds no comparison: expected a folder that mixlab compare made."
        )
    return Comparison(Path(folder), found)
