"""Reads a study folder into the records of `material`.

The one source is `results.json`; the validation curves and the losses by document come from the
run folders that it names. A file that is missing or damaged is told in the report.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixlab.core.errors import LabError, RunError
from mixlab.core.json_files import read_json, read_lines
from mixlab.report.study.facts import study_facts
from mixlab.report.study.material import Arm, Curve, Figures, Match, Run, Study, known

RESULTS = "results.json"

_STATUS = {"done": "finished", "failed": "failed", "waiting": "waiting", "running": "running"}
_SPENT = {"steps": "steps", "tokens": "tokens", "flops": "flops", "seconds": "seconds",
          "peak_memory_bytes": "memory_bytes", "decode_ms": "decode_ms"}  # fmt: skip


def read_study(folder: Path) -> Study:
    """The study in `folder`, finished or not.

    Raises:
        RunError: there is no study, or its results are no JSON.
    """
    folder = Path(folder)
    tree = read_json(folder / RESULTS)
    if tree is None:
        if not folder.is_dir():
            raise RunError(
                f"study folder {folder} does not exist: expected the folder of a study that was "
                "started. Start one with `mixlab study run NAME`."
            )
        raise RunError(
            f"{folder} holds no {RESULTS}: it is not the folder of a study that was started. "
            "Start one with `mixlab study run NAME`."
        )
    if not isinstance(tree, Mapping) or not isinstance(tree.get("arms"), list):
        raise RunError(f"{folder / RESULTS} is damaged: expected the results of a study.")
    return _Reader(folder, tree).study()


class _Reader:
    def __init__(self, folder: Path, tree: Mapping[str, Any]) -> None:
        self.folder, self.tree = folder, tree
        self.jobs: Mapping[str, Any] = tree.get("jobs") or {}
        self.metric: Mapping[str, Any] = tree.get("metric") or {}
        self.problems: list[str] = []

    def study(self) -> Study:
        tree = self.tree
        arms = tuple(self._arm(arm) for arm in tree["arms"])
        match = tree.get("match") or {}
        screen = tree.get("screen") or {}
        split, _, metric = str(self.metric.get("name", "validation.loss_nats")).partition(".")
        return Study(
            name=str(tree.get("name") or self.folder.resolve().name),
            about=" ".join(str(tree.get("about") or "").split()),
            base=str(tree.get("baseline") or (arms[0].name if arms else "")),
            arms=arms,
            metric=metric or split,
            lower_is_better=bool(self.metric.get("lower_is_better", True)),
            alpha=float(tree.get("alpha") or 0.05),
            seeds=tuple(int(seed) for seed in tree.get("seeds") or ()),
            effect=tree["effect"] if known(tree.get("effect")) else None,
            match=tuple(
                Match(str(name), tolerance=float(match.get("tolerance") or 0.01))
                for name in match.get("by") or ()
            ),
            screening=_screening(screen),
            screening_rows=tuple(screen.get("history") or ()),
            is_as_published=bool(tree.get("is_as_published")),
            facts=study_facts(tree),
            problems=tuple(self.problems),
            bytes_per_token=_bytes_per_token(arms),
            is_smoke=bool(tree.get("is_smoke")),
            set_aside=tuple(tree.get("set_aside") or ()),
        )

    def _arm(self, arm: Mapping[str, Any]) -> Arm:
        name = str(arm.get("name"))
        # An arm that was dropped on purpose waits for nothing.
        idle = "dropped" if arm.get("status") == "screened out" else "waiting"
        seeds = {str(seed): None for seed in self.tree.get("seeds") or ()}
        by_seed = {**seeds, **(arm.get("jobs") or {})}
        runs = [
            self._run(name, int(seed), address, arm, idle)
            for seed, address in sorted(by_seed.items(), key=lambda item: int(item[0]))
        ]
        tuning = arm.get("tuning") or {}
        points = [
            (address, point) for point in tuning.get("points") or ()
            for address in point.get("jobs") or ()
        ]  # fmt: skip
        solved = arm.get("solved") or {}
        return Arm(
            name=name,
            about=" ".join(str(arm.get("about") or "").split()),
            changes=arm.get("changes") or {},
            runs=tuple(runs),
            tuning=tuple(
                self._run(name, -1, address, arm, "waiting", lr=point.get("lr"), is_tuning=True)
                for address, point in points
            ),
            lr=arm["lr"] if known(arm.get("lr")) else None,
            lr_status=str(tuning.get("status") or ""),
            why_not="" if arm.get("is_ranked", True) else str(arm.get("why_not") or "not ranked"),
            costs=_costs(arm),
            matching="; ".join(
                f"{path} {old} -> {new}"
                for path, (old, new) in (solved.get("changes") or {}).items()
            ),
        )

    def _run(
        self, arm: str, seed: int, address: str | None, of: Mapping[str, Any], idle: str,
        lr: float | None = None, is_tuning: bool = False,
    ) -> Run:  # fmt: skip
        job: Mapping[str, Any] = self.jobs.get(address or "") or {}
        status = _STATUS.get(str(job.get("status")), idle) if job else idle
        error = job.get("error") or {}
        final = dict(job.get("final") or {})
        value = (of.get("values") or {}).get(str(seed)) if not is_tuning else job.get("value")
        if known(value):
            final[self._metric_key()] = value
        folder = str(job.get("run") or "") if status in ("finished", "failed") else ""
        realised = {new: job[old] for old, new in _SPENT.items() if known(job.get(old))}
        return Run(
            arm=arm,
            seed=int(job.get("seed", seed)),
            lr=lr if lr is not None else job.get("lr"),
            status=status,
            folder=folder,
            is_tuning=is_tuning,
            results={key: v for key, v in final.items() if known(v)},
            realised=realised,
            curve=self._curve(job, final, realised) if status == "finished" else Curve(),
            error=str(error.get("message") or ""),
            error_kind=str(error.get("kind") or ""),
            attempts=max(1, len(error.get("attempts") or ())),
            test={key: v for key, v in (job.get("test") or {}).items() if known(v)},
            unigram=job.get("unigram_entropy_nats"),
            documents=str(job.get("documents") or ""),
            address=address or "",
        )

    def _metric_key(self) -> str:
        return str(self.metric.get("name", "validation.loss_nats")).rpartition(".")[2]

    def _curve(self, job: Mapping[str, Any], final: Mapping[str, Any], spent: Figures) -> Curve:
        """Validation rows of the weights that the final figure is of."""
        name = (job.get("curves") or {}).get("evals")
        if not name:
            return Curve()
        try:
            rows = read_lines(self.folder / name)
        except LabError as error:
            self.problems.append(str(error))
            return Curve()
        metric, weights = self._metric_key(), final.get("weights", "raw")
        rows = [
            row for row in rows
            if row.get("split") == "validation" and row.get("weights", "raw") == weights
            and known(row.get(metric)) and known(row.get("tokens"))
        ]  # fmt: skip
        per_token = spent.get("flops", 0) / spent["tokens"] if spent.get("tokens") else 0.0
        return Curve(
            value=tuple(float(row[metric]) for row in rows),
            tokens=tuple(float(row["tokens"]) for row in rows),
            flops=tuple(float(row.get("flops") or per_token * row["tokens"]) for row in rows),
            seconds=tuple(float(row.get("elapsed_s") or 0.0) for row in rows),
        )


def _costs(arm: Mapping[str, Any]) -> dict[str, float]:
    realised = arm.get("realised") or {}
    found = {
        "params": arm.get("n_params"),
        "active_params": arm.get("n_active_params"),
        "state_bytes": arm.get("state_bytes"),
        # A training token costs three forward passes by the usual count: one forward, two backward.
        "decode_flops": arm["flops_per_token"] / 3 if known(arm.get("flops_per_token")) else None,
        "memory_bytes": realised.get("peak_memory_bytes"),
        "memory_estimate": arm.get("memory_bytes_estimate"),
    }
    return {name: float(value) for name, value in found.items() if known(value)}


def _screening(screen: Mapping[str, Any]) -> str:
    rungs = screen.get("rungs") or ()
    return " -> ".join(str(rung) for rung in rungs)


def _bytes_per_token(arms: tuple[Arm, ...]) -> float | None:
    """Text per target token, from any run that reports both nats and bits per byte."""
    for arm in arms:
        for run in arm.finished:
            nats, bits = run.results.get("loss_nats"), run.results.get("bits_per_byte")
            if nats and bits:
                return nats / bits / 0.6931471805599453
    return None
