"""`mixlab study plan`: arms, runs, expected time and cost, before any compute is spent."""

import time
from typing import Any

from mixlab.core import units
from mixlab.core.errors import LabError
from mixlab.data.progress import Silent
from mixlab.jobs.device import measure_matmul_flops, settle_hardware
from mixlab.jobs.kinds import kind_of
from mixlab.jobs.screen import Screen
from mixlab.studies.design import Arm, Design
from mixlab.studies.lengths import Costs
from mixlab.studies.profile_job import quick_seconds_per_step
from mixlab.studies.progress import table
from mixlab.studies.rounds import TYPICAL_TUNING_RUNS
from mixlab.studies.sizes import size_of
from mixlab.studies.study_file import StudyFile

TIMING_S = 20.0
"""Time that a plan may spend on timing updates; the rest is estimated from FLOPs."""
TYPICAL_MFU = 0.25
"""Share of the matrix rate that training reaches, where nothing could be timed."""
N_UPDATES = 8
"""Updates that one timing takes, about."""
_SHOWN = 60


def plan_text(found: Design, screen: Screen, *, n_workers: int) -> str:
    """The whole of `mixlab study plan`.

    Raises:
        LabError: the expected cost exceeds the study's total budget.
    """
    study = found.study
    seconds, how = step_seconds(found, screen)
    lines = [f"{study.name}{' (smoke size)' if found.is_smoke else ''}", *_question(study), ""]
    lines += _facts(found)
    lines += ["", *table(_COLUMNS, [_cells(found, arm) for arm in found.arms.values()])]
    lines += _solved(found)
    n_tuning, n_seeds = n_runs(study, len(found.arms))
    total = expected_seconds(found, seconds)
    n_workers = min(n_workers, n_tuning + n_seeds)
    cost = expected_cost(found)
    lines += [
        "",
        f"Runs: {n_tuning + n_seeds}"
        + (f" ({n_tuning} to find rates, about {TYPICAL_TUNING_RUNS} per arm and tuning seed; "
           f"{n_seeds} for the ranking)" if n_tuning else "")
        + ".",
        f"Cost: {units.count(cost['tokens'])} tokens, {units.flops(cost['flops'])} FLOPs.",
        f"Time: about {units.duration(total / n_workers)} with {n_workers} "
        f"{'worker' if n_workers == 1 else 'workers'} here ({how}).",
        f"Disk: about {units.size(_disk(found, n_tuning + n_seeds))} (checkpoints kept: "
        f"{study.keep}).",
    ]  # fmt: skip
    refuse_expected(study, {**cost, "seconds": total})
    return "\n".join(lines)


_COLUMNS = ("arm", "changes", "parameters", "rate", "steps", "tokens", "FLOPs")


def _question(study: StudyFile) -> list[str]:
    return [" ".join(study.about.split())] if study.about else []


def _facts(found: Design) -> list[str]:
    study = found.study
    seeds = ", ".join(map(str, study.seeds))
    match = [study.matched_length, *([study.matched_size] if study.matched_size else [])]
    tune = "none; every arm takes the rate of its recipe"
    if found.is_smoke:
        tune = "none at smoke size; every arm takes the rate of its recipe"
    if study.tune is not None:
        tune = (
            f"each arm's rate by factors of 2, then sqrt 2, with seed "
            f"{', '.join(map(str, study.tuning_seeds))}"
        )
    rows = [
        ("base", study.base),
        ("held equal", ", ".join(match)),
        ("length of a run", str(found.length)),
        ("seeds", seeds),
        ("tuning", tune),
        ("ranked by", f"{found.metric.name}, "
                      f"{'lower' if found.metric.lower_is_better else 'higher'} is better"),
        ("baseline", found.baseline),
    ]  # fmt: skip
    lengths = {getattr(arm.config.data, "seq_len", 0) for arm in found.arms.values()}
    if len(lengths) > 1:
        rows.append(
            ("sequences", f"of {min(lengths):,} to {max(lengths):,} tokens: losses per token have "
                          "other contexts, and runs of a seed are not paired")
        )  # fmt: skip
    if study.screen is not None:
        rows.append(
            ("screening", " -> ".join(map(str, study.screen)) + " seeds, half the arms go on")
        )
    return [f"  {name:<16}{value}" for name, value in rows]


def _cells(found: Design, arm: Arm) -> list[str]:
    config, cost = arm.config, Costs.of(arm.config, None)
    changes = ", ".join(f"{key}={_short(value)}" for key, value in arm.changes.items())
    row = [arm.name, changes[:_SHOWN] + ("..." if len(changes) > _SHOWN else "")]
    row += [f"{kind_params(arm):,}", f"{config.train.optimizer.lr:g}"]
    if not found.has_lengths:
        return [*row, "timed first", "", ""]
    steps = int(config.train.length.amount)
    return [*row, f"{steps:,}", units.count(steps * cost.tokens), units.flops(steps * cost.flops)]


def kind_params(arm: Arm) -> int:
    """Trainable numbers of an arm."""
    return size_of(arm.config, "params")


def _short(value: Any) -> str:
    return str(value).replace("'", "")


def _solved(found: Design) -> list[str]:
    solved = [arm for arm in found.arms.values() if arm.solved and arm.solved["changes"]]
    if not solved:
        return []
    lines = ["", f"Chosen for equal {found.study.matched_size}:"]
    for arm in solved:
        assert arm.solved is not None
        changes = ", ".join(
            f"{key} {old} -> {new}" for key, (old, new) in arm.solved["changes"].items()
        )
        lines.append(f"  {arm.name}: {changes}; {arm.solved['reached']:,} parameters")
    return lines


# --- what it will take ----------------------------------------------------------------------------


def n_runs(study: StudyFile, n_arms: int) -> tuple[int, int]:
    """(tuning runs, runs for the ranking), the former as far as one can tell."""
    n_tuning = TYPICAL_TUNING_RUNS * len(study.tuning_seeds) * n_arms
    if study.screen is None:
        return n_tuning, n_arms * len(study.seeds)
    total, arms, before = 0, n_arms, 0
    for n in study.screen:
        total += arms * (n - before)
        before, arms = n, max(2, -(-(arms - 1) // 2)) + 1 if arms > 2 else arms
    return n_tuning, total


def _runs_per_arm(found: Design) -> float:
    n_tuning, n_seeds = n_runs(found.study, len(found.arms))
    return (n_tuning + n_seeds) / len(found.arms)


def expected_cost(found: Design) -> dict[str, float]:
    """Steps, tokens and FLOPs of all runs, as far as lengths are known."""
    per_arm, total = _runs_per_arm(found), {"steps": 0.0, "tokens": 0.0, "flops": 0.0}
    for arm in found.arms.values():
        cost, length = Costs.of(arm.config, None), arm.config.train.length
        if length.unit == "seconds":
            continue
        n = per_arm * length.n_steps(cost.tokens, cost.flops / cost.tokens, None)
        total["steps"] += n
        total["tokens"] += n * cost.tokens
        total["flops"] += n * cost.flops
    return total


def expected_seconds(found: Design, per_step: dict[str, float]) -> float:
    """Time of all runs, one after the other."""
    per_arm, total = _runs_per_arm(found), 0.0
    for name, arm in found.arms.items():
        cost = Costs.of(arm.config, per_step[name])
        length = found.length if not found.has_lengths else arm.config.train.length
        total += (
            per_arm
            * per_step[name]
            * length.n_steps(cost.tokens, cost.flops / cost.tokens, per_step[name])
        )
    return total


def step_seconds(found: Design, screen: Screen) -> tuple[dict[str, float], str]:
    """Seconds of an update for every arm, and how they were found."""
    flops = {name: Costs.of(arm.config, None).flops for name, arm in found.arms.items()}
    base = found.arms[found.baseline].config
    hardware = settle_hardware(base.train)
    rate = TYPICAL_MFU * measure_matmul_flops(hardware.device, hardware.compute_dtype)
    timed: dict[str, float] = {}
    start = time.monotonic()
    names = sorted(found.arms, key=lambda name: name != found.baseline)
    with screen.task("Timing a few updates of each arm", len(names)) as advance:
        for name in names:
            guess = flops[name] / rate
            if timed:
                guess = flops[name] * max(timed[n] / flops[n] for n in timed)
            left = TIMING_S - (time.monotonic() - start)
            if N_UPDATES * guess <= left:
                arm = found.arms[name]
                data = kind_of(arm.config).prepare_data(arm.config, Silent())
                timed[name] = quick_seconds_per_step(arm.config, data)
            advance(1)
    if not timed:
        return {name: f / rate for name, f in flops.items()}, "a rough estimate from FLOPs"
    per_flop = sum(timed[n] / flops[n] for n in timed) / len(timed)
    how = "updates of every arm were timed"
    if len(timed) < len(flops):
        how = f"updates of {len(timed)} of {len(flops)} arms were timed, the others by their FLOPs"
    return {name: timed.get(name, flops[name] * per_flop) for name in flops}, how


def _disk(found: Design, n: int) -> float:
    """Checkpoints that stay: weights and optimizer state, of the last step and the best."""
    if found.study.keep == "none":
        return 0.0
    mean = sum(kind_params(arm) for arm in found.arms.values()) / len(found.arms)
    return n * mean * 12 * (1.5 if found.study.keep == "last" else 4)


def refuse_expected(study: StudyFile, expected: dict[str, float]) -> None:
    """Refuse a study that will not fit its total budget.

    Raises:
        LabError: names what it will take.
    """
    total = study.budget.total
    if total is None or expected.get(total.unit, 0.0) <= total.amount:
        return
    show = units.duration if total.unit == "seconds" else units.count
    raise LabError(
        f"budget.total = {total}: is too little: all runs together will take about "
        f"{show(expected[total.unit])} {total.unit}. Raise it, or ask for less: fewer arms "
        "or seeds, a shorter budget.per_run, screening, no tuning."
    )
