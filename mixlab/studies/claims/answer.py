"""The verdict on a claim in words, and as JSON beside the study."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mixlab.core.config import to_tree
from mixlab.core.json_files import write_json
from mixlab.report.study.figures import QUANTITIES as LABELS
from mixlab.report.study.figures import digits_for, plural
from mixlab.report.study.material import Study
from mixlab.report.study.metrics import Metric, describe_metric
from mixlab.studies.claims.verdict import Compared, Judged, Verdict


def answer_text(verdict: Verdict, study: Study) -> str:
    """What `mixlab claim run` prints: the verdict, then the figures of every statement."""
    metric = _metric(verdict, study)
    lines = [f"Claim: {verdict.claim.claim}", "", verdict.verdict.upper(), ""]
    lines += [f"  No answer: {reason}." for reason in verdict.reasons]
    if verdict.reasons and verdict.judged:
        lines.append("  What the figures would say:")
    n_all = len(verdict.claim.all_of)
    for place, judged in enumerate(verdict.judged):
        if place == n_all and len(verdict.claim.any_of) > 1:
            lines.append("  One of these would be enough:")
        lines += _statement(judged, metric)
    lines += ["", _ground(verdict, study, metric)]
    return "\n".join(lines)


def _metric(verdict: Verdict, study: Study) -> Metric:
    name = verdict.claim.metric or study.metric
    spreads = [
        None if one.low is None or one.high is None else one.high - one.low
        for judged in verdict.judged for one in judged.compared
    ]  # fmt: skip
    if name in LABELS:
        quantity = LABELS[name]
        return Metric(name, quantity.label.lower(), quantity.unit, quantity.unit, 1.0, 1, True)
    lower = study.lower_is_better
    return describe_metric(study.metric, lower, digits_for(spreads, most=4))


def _statement(judged: Judged, metric: Metric) -> list[str]:
    s = judged.statement
    margin = f" by more than {metric.size(s.by)}" if s.by else ""
    if s.differ:
        head = f"some of {', '.join(s.differ)} differ{margin}"
    elif s.not_worse_than:
        head = f"{s.arm} is worse than {_listed(s.not_worse_than)} by less than {metric.size(s.by)}"
    else:
        head = f"{s.arm} is better than {_listed(s.better_than)}{margin}"
    lines = [f"  {judged.verdict}: {head}"]
    if judged.reason:
        lines.append(f"    {judged.reason}")
    lines += [f"    {_figures(one, judged, metric)}" for one in judged.compared]
    return lines


def _figures(one: Compared, judged: Judged, metric: Metric) -> str:
    better = one.advantage >= 0
    ahead = f"{one.first} {'ahead of' if better else 'behind'} {one.second}"
    text = f"{ahead} by {metric.size(one.advantage)}"
    if one.low is not None and one.high is not None:
        ends = (one.low, one.high) if better else (-one.high, -one.low)
        text += f" ({metric.value(ends[0])} to {metric.value(ends[1])})"
    text += f", {plural(one.n, 'seed')}"
    if judged.verdict == "undecided" and one.seeds_needed is not None:
        text += (
            f"; if that is the true size, about {plural(one.seeds_needed, 'seed')} would show it"
        )
    return text


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _ground(verdict: Verdict, study: Study, metric: Metric) -> str:
    claim = verdict.claim
    equal = (
        f", at equal {' and '.join(q.replace('_', ' ') for q in claim.equal)}"
        if claim.equal
        else ""
    )
    return (
        f"Judged by {metric.axis}{equal}; two-sided {100 * (1 - claim.alpha):g} % intervals, "
        f"paired by seed; study {study.name}."
    )


def write_answer(verdict: Verdict, study: Study, folder: Path) -> Path:
    """Write FOLDER/claims/NAME.json; returns its path."""
    tree: dict[str, Any] = {
        "format": 1,
        "claim": to_tree(verdict.claim),
        "verdict": verdict.verdict,
        "reasons": list(verdict.reasons),
        "statements": [
            {
                "statement": to_tree(judged.statement),
                "verdict": judged.verdict,
                "reason": judged.reason,
                "compared": [asdict(one) for one in judged.compared],
            }
            for judged in verdict.judged
        ],
        "study": {"name": study.name, "seeds": list(study.seeds), "is_smoke": study.is_smoke},
        "facts": dict(study.facts),
    }
    return write_json(folder / "claims" / f"{verdict.claim.name}.json", tree)
