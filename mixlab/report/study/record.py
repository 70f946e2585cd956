"""The figures of a report as plain data, for notebooks and other programs: report.json."""

from dataclasses import asdict
from typing import Any

from mixlab.report.study.analysis import Analysis, Standing
from mixlab.report.study.metrics import describe_metric
from mixlab.report.study.words import findings, progress


def to_record(analysis: Analysis) -> dict[str, Any]:
    """Everything that the page says, as numbers and sentences."""
    study, comparison = analysis.study, analysis.comparison
    metric = describe_metric(study.metric, study.lower_is_better, 4)
    return {
        "format": 1,
        "name": study.name,
        "about": study.about,
        "metric": {"name": study.metric, "unit": metric.unit,
                   "lower_is_better": study.lower_is_better},
        "base": study.base,
        "alpha": study.alpha,
        "seeds": study.seeds,
        "progress": progress(analysis) or "complete",
        "findings": [{"kind": s.kind, "text": s.text} for s in findings(analysis, metric)],
        "leaderboard": [_standing(standing) for standing in analysis.standings],
        "pairs": [asdict(pair) for pair in (comparison.pairs if comparison else ())],
        "tie_groups": [asdict(group) for group in (comparison.groups if comparison else ())],
        "noise": {
            "base": asdict(analysis.floor) if analysis.floor else None,
            "sd_of_differences": analysis.sd_of_differences,
            "smallest_detectable": analysis.detectable,
            "seeds_needed": [{"effect": e, "seeds": n} for e, n in analysis.needed],
        },
        "fronts": [
            {"cost": f.cost, "costs": f.costs, "means": f.means, "on_front": f.on_front,
             "share_of_draws": f.shares}
            for f in analysis.fronts
        ],
        "uneven_times": dict(analysis.uneven_times),
        "matched": [
            {"quantity": m.quantity, "tolerance": m.tolerance,
             "realised": {arm.name: arm.mean(m.quantity) for arm in study.arms}}
            for m in study.match
        ],
        "failed": [
            {"arm": run.arm, "seed": run.seed, "lr": run.lr, "is_tuning": run.is_tuning,
             "kind": run.error_kind, "error": run.error}
            for run in study.runs if run.status == "failed"
        ],
        "facts": dict(study.facts),
    }  # fmt: skip


def _standing(standing: Standing) -> dict[str, Any]:
    arm, pair = standing.arm, standing.against_base
    return {
        "arm": arm.name,
        "rank": standing.rank,
        "tie_groups": standing.letters,
        "why_not_ranked": arm.why_not or None,
        "summary": asdict(standing.summary) if standing.summary else None,
        "against_base": {**asdict(pair.difference), "p_holm": pair.p_holm,
                         "is_different": pair.is_different} if pair else None,
        "effect": asdict(standing.effect) if standing.effect else None,
        "lr": arm.lr,
        "lr_status": arm.lr_status or None,
        "costs": dict(arm.costs),
        "tuning": {"runs": len(arm.tuning), "flops": arm.spent("flops", arm.tuning),
                   "seconds": arm.spent("seconds", arm.tuning)},
        "runs": {str(run.seed): run.folder for run in arm.finished},
    }  # fmt: skip
