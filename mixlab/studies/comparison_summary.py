"""Finished runs of arms and controls become comparison_summary.json: figures, tests, verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from mixlab.jobs.config import RunConfig
from mixlab.jobs.session import optimizer_bytes_per_param
from mixlab.nn.budget import state_bytes, training_memory_bytes
from mixlab.report.comparison_runs import RunFigures
from mixlab.stats import (
    ArmComparison,
    DocumentLosses,
    Pair,
    compare_arms,
    effect,
    noise_floor,
    seeds_needed,
    smallest_detectable,
)
from mixlab.studies.comparison_arms import Arm, identity
from mixlab.studies.comparison_ground import Metric, tokens_label
from mixlab.studies.controls import TOLERANCE, Control, ControlKind, is_recursive

FORMAT = 1
POWER = 0.8
"""Chance to find a difference, wherever a number of seeds is named."""

Runs = Mapping[str, Sequence[RunFigures]]
Row = dict[str, Any]


def summarise(
    arms: Sequence[Arm],
    runs: Runs,
    controls: Mapping[str, Sequence[tuple[Control, str]]],
    metric: Metric,
    labels: Sequence[str],
    *,
    documents: Mapping[str, Mapping[int, DocumentLosses]] | None,
    speeds: Mapping[str, Mapping[str, float]],
    command: str,
    controls_command: str,
    saw_the_same: bool | None,
) -> Row:
    """The whole summary as plain data; `arms` begin with the baseline.

    `controls` holds, for each recursive arm, its four controls with the name of the arm that is
    one, or "" where it is missing. `documents` is used from 8 seeds on. `speeds` holds the seconds
    of an update with and without recursion, where they were measured side by side.
    """
    base = arms[0].name
    values = {
        name: {run.seed: float(run.final[metric.name]) for run in figures}
        for name, figures in runs.items()
    }
    found = compare_arms(values, lower_is_better=metric.lower_is_better, documents=documents)
    tokens = {
        name: float(np.mean([run.tokens for run in figures])) for name, figures in runs.items()
    }
    more_labels = [
        tokens_label(base, round(tokens[base]), arm.name, round(tokens[arm.name]))
        for arm in arms
        if not arm.control_of and not _is_close(tokens[arm.name], tokens[base])
    ]
    first = runs[base][0]
    return {
        "format": FORMAT,
        "command": command,
        "baseline": base,
        "metric": asdict(metric),
        "seeds": sorted({run.seed for figures in runs.values() for run in figures}),
        "labels": [*labels, *more_labels],
        "same_sequences_per_seed": saw_the_same,
        "data": _data(first),
        "context": dict(first.context),
        "arms": [_arm_row(arm, runs[arm.name], found, metric) for arm in arms],
        "statistics": found.to_json(),
        "noise": _noise(found, base),
        "against_baseline": [
            _against(
                found, base, arm.name, metric, first, _is_close(tokens[arm.name], tokens[base])
            )
            for arm in arms[1:]
            if not arm.control_of
        ],
        "controls": [
            {
                "of": name,
                "rows": [
                    _control_row(control, made, name, runs, found, metric, speeds, controls_command)
                    for control, made in rows
                ],
            }
            for name, rows in controls.items()
        ],
    }


# --- arms ---------------------------------------------------------------------------------------


def _arm_row(arm: Arm, figures: Sequence[RunFigures], found: ArmComparison, metric: Metric) -> Row:
    summary, first = found.arm(arm.name), figures[0]
    measured = [run.peak_memory_bytes for run in figures if run.peak_memory_bytes]
    row: Row = {
        "name": arm.name,
        "role": "control" if arm.control_of else "arm",
        "control_of": arm.control_of or None,
        "is_recursive": arm.control is None and is_recursive(arm.config),
        "n_params": first.n_params,
        "n_active_params": first.n_active_params,
        "flops_per_token": first.flops_per_token,
        "steps": first.steps,
        "tokens": _mean(run.tokens for run in figures),
        "flops": _mean(run.flops for run in figures),
        "seconds": _mean(run.train_s for run in figures),
        "update_seconds": _mean(run.update_s for run in figures),
        "tokens_per_s": _mean(run.tokens_per_s for run in figures),
        "memory_bytes": max(measured) if measured else _memory_estimate(arm),
        "memory_is_measured": bool(measured),
        "state_bytes": _state_bytes(arm),
        "mean": summary.mean,
        "sd": summary.sd,
        "low": summary.low,
        "high": summary.high,
        "letters": summary.letters,
        "runs": [_run_row(run, metric) for run in figures],
    }
    return row


def _run_row(run: RunFigures, metric: Metric) -> Row:
    return {
        "seed": run.seed,
        "path": str(run.path),
        "status": run.status,
        "value": run.final[metric.name],
        "final": {key: value for key, value in run.final.items() if not isinstance(value, list)},
        "test": {key: value for key, value in run.test.items() if not isinstance(value, list)},
        "tokens": run.tokens,
        "seconds": run.train_s,
        "device": run.device,
        "precision": run.precision,
        "curves": run.curves,
    }


def _memory_estimate(arm: Arm) -> int | None:
    """By formula, where no run has measured it."""
    config = arm.config
    if not isinstance(config, RunConfig):
        return None
    micro = config.train.micro_batch_size or config.train.batch_size
    return training_memory_bytes(
        config.model,
        micro_batch_tokens=micro * config.data.seq_len,
        optimizer_bytes_per_param=optimizer_bytes_per_param(config.train),
    )


def _state_bytes(arm: Arm) -> int | None:
    """Of one sequence of seq_len tokens, in bfloat16."""
    config = arm.config
    if not isinstance(config, RunConfig):
        return None
    return state_bytes(config.model, config.data.seq_len, 2)


def _data(run: RunFigures) -> Row:
    data, tokenizer = run.data, run.data.get("tokenizer") or {}
    corpus = (data.get("corpus") or {}).get("kind") or data.get("task")
    return {
        "corpus": corpus,
        "content_hash": data.get("content_hash"),
        "tokenizer": (tokenizer.get("config") or {}).get("kind"),
        "vocab_size": tokenizer.get("vocab_size"),
        "n_validation": run.final.get("n_tokens") or run.final.get("n_examples"),
    }


# --- verdicts -----------------------------------------------------------------------------------


def _against(
    found: ArmComparison, base: str, name: str, metric: Metric, first: RunFigures, is_equal: bool
) -> Row:
    """One arm against the baseline, with a verdict in a word: better, worse or undecided."""
    pair = found.pair(name, base)
    verdict = "undecided"
    if pair.is_different and is_equal:
        is_better = (pair.difference.mean < 0) == metric.lower_is_better
        verdict = "better" if is_better else "worse"
    return {
        "arm": name,
        "baseline": base,
        **_pair_row(pair, found),
        "effect": _effect(pair, found, base, metric, first),
        "verdict": verdict,
        "tokens_are_equal": is_equal,
    }


def _pair_row(pair: Pair, found: ArmComparison) -> Row:
    d = pair.difference
    needed = None
    if d.sd is not None and not pair.is_different and d.p is not None:
        needed = seeds_needed(
            d.mean, d.sd, alpha=found.alpha, power=POWER, n_comparisons=found.n_tested
        )
    return {
        "difference": asdict(d),
        "p_holm": pair.p_holm,
        "n_pairs": found.n_tested,
        "is_different": pair.is_different,
        "seeds_needed": needed,
    }


def _effect(
    pair: Pair, found: ArmComparison, base: str, metric: Metric, first: RunFigures
) -> Row | None:
    """In nats, bits per byte and percent; of an accuracy there is only the difference."""
    if not metric.lower_is_better:
        return None
    d, seeds = pair.difference, pair.difference.seeds
    values = found.arm(base).values
    reference = _mean(values[s] for s in seeds) if seeds else found.arm(base).mean
    assert reference is not None
    if metric.name == "bits_per_byte":
        return {
            "nats": None,
            "bits_per_byte": d.mean,
            "reduction_percent": -100 * d.mean / reference,
        }
    return asdict(effect(reference, reference + d.mean, first.context.get("bytes_per_target")))


def _noise(found: ArmComparison, base: str) -> Row:
    """The spread of the baseline's runs, and what this comparison could have seen."""
    runs = found.arm(base).values
    sds = [pair.difference.sd for pair in found.pairs if pair.difference.sd is not None]
    row: Row = {"baseline": asdict(noise_floor(list(runs.values())))}
    row["sd_of_differences"] = float(np.sqrt(np.mean(np.square(sds)))) if sds else None
    row["power"], row["n_pairs"] = POWER, found.n_tested
    row["smallest_detectable"] = None
    if sds:
        row["smallest_detectable"] = smallest_detectable(
            row["sd_of_differences"], min(len(runs), max(p.difference.n for p in found.pairs)),
            alpha=found.alpha, power=POWER, n_comparisons=max(1, found.n_tested),
        )  # fmt: skip
    return row


# --- controls -----------------------------------------------------------------------------------


def find_controls(
    of: Arm, controls: Sequence[Control], arms: Sequence[Arm], runs: Runs
) -> list[tuple[Control, str]]:
    """Each control with the arm that is one: the one made for it, or another that matches."""
    found = []
    for control in controls:
        made = [
            arm.name
            for arm in arms
            if arm.control_of == of.name and arm.control and arm.control.kind == control.kind
        ]
        if not made and control.config is not None:
            made = [
                arm.name for arm in arms if arm.name != of.name and _serves(control, arm, of, runs)
            ]
        found.append((control, made[0] if made else ""))
    return found


def _serves(control: Control, arm: Arm, of: Arm, runs: Runs) -> bool:
    """Whether an arm of the comparison is as good as the control that would be made."""
    assert control.config is not None
    if control.kind.key == "fixed-steps":
        return identity(arm.config) == identity(control.config)
    if is_recursive(arm.config) or arm.name not in runs or of.name not in runs:
        return False
    wanted, got = (matched_quantity(control.kind, runs[name]) for name in (of.name, arm.name))
    return wanted is not None and got is not None and _is_close(got, wanted)


def matched_quantity(kind: ControlKind, figures: Sequence[RunFigures]) -> float | None:
    """What the control holds equal, measured on finished runs."""
    if kind.matched == "parameters":
        return float(figures[0].n_params)
    if kind.matched == "FLOPs":
        return _mean(run.flops for run in figures)
    return update_time(figures)


def update_time(figures: Sequence[RunFigures]) -> float | None:
    """Seconds of all updates of a run, evaluations left out; a mean over seeds."""
    return _mean(run.update_s * run.steps if run.update_s else None for run in figures)


def _control_row(
    control: Control,
    made: str,
    of: str,
    runs: Runs,
    found: ArmComparison,
    metric: Metric,
    speeds: Mapping[str, Mapping[str, float]],
    command: str,
) -> Row:
    kind = control.kind
    row: Row = {"kind": kind.key, "title": kind.title, "matched": kind.matched, "arm": made or None}
    if not made:
        row["status"] = "missing" if control.config is not None else "does not apply"
        row["reason"] = control.reason
        row["command"] = command if control.config is not None else None
        return row
    wanted, got = (matched_quantity(kind, runs[name]) for name in (of, made))
    if control.waits and of in speeds and runs[made][0].steps == speeds[of]["steps"]:
        wanted = runs[of][0].steps * speeds[of]["update_seconds"]
        got = runs[made][0].steps * speeds[of]["plain_update_seconds"]
        row["matched"] += ", timed side by side"
    ratio = got / wanted if got and wanted else None
    row.update(
        status="present",
        wanted=wanted,
        got=got,
        ratio=ratio,
        is_within=ratio is not None and abs(ratio - 1) <= TOLERANCE,
    )
    pair = found.pair(of, made)
    verdict = "undecided"
    if pair.is_different:
        is_better = (pair.difference.mean < 0) == metric.lower_is_better
        verdict = "better" if is_better else "worse"
    row.update(
        _pair_row(pair, found),
        effect=_effect(pair, found, made, metric, runs[of][0]),
        verdict=verdict,
    )
    return row


def _is_close(a: float, b: float) -> bool:
    return abs(a - b) <= TOLERANCE * abs(b)


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
