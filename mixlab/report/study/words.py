"""The findings of a study in plain sentences, the ones that a reader should see first."""

from collections.abc import Iterable
from typing import NamedTuple

from mixlab.report.study.analysis import Analysis
from mixlab.report.study.figures import QUANTITIES, listed, plural
from mixlab.report.study.metrics import Metric

_SHOWN_BEHIND = 4
OPEN, CLOSE = "\ue000", "\ue001"
"""Stand around an arm's name in a sentence, so that a page can link it; in no text otherwise."""


class Sentence(NamedTuple):
    """One finding. `kind` is what a page marks it by: answer, noise, warning or note."""

    kind: str
    marked: str
    """The sentence, with marks around the names of arms."""

    @property
    def text(self) -> str:
        return self.marked.replace(OPEN, "").replace(CLOSE, "")


def _named(name: str) -> str:
    return f"{OPEN}{name}{CLOSE}"


def _all_named(names: Iterable[str]) -> str:
    return listed([_named(name) for name in names])


def progress(analysis: Analysis) -> str:
    """How much of the study is done; empty for a finished one."""
    runs = [run for run in analysis.study.runs if run.status != "dropped"]
    if not any(run.status in ("waiting", "running") for run in runs):
        return ""
    done = sum(run.status == "finished" for run in runs)
    return (
        f"Unfinished: {done:,} of {plural(len(runs), 'run')} are done; everything below may change."
    )


def findings(analysis: Analysis, metric: Metric) -> list[Sentence]:
    """The headline, most important first."""
    found = [Sentence("warning", text) for text in _warnings(analysis)]
    if analysis.comparison is None:
        answers = [_nothing_yet(analysis)]
    elif analysis.n_compared == 1:
        answers = [_alone(analysis, metric)]
    elif analysis.comparison.n_tested == 0:
        answers = [_untested(analysis, metric)]
    else:
        answers = _answers(analysis, metric)
    found += [Sentence("answer", text) for text in answers if text]
    if analysis.floor is not None:
        found += [Sentence("noise", text) for text in _noise(analysis, metric)]
    return found + [Sentence("note", text) for text in _notes(analysis)]


# --- who is better ------------------------------------------------------------------------------


def _nothing_yet(analysis: Analysis) -> str:
    study = analysis.study
    if any(run.status == "finished" for arm in study.arms for run in arm.runs):
        return "No arm can be ranked; the reason of each is below."
    if any(run.status == "failed" for run in study.runs):
        return "No run of the comparison has finished, and some have failed."
    return "No run of the comparison has finished yet."


def _alone(analysis: Analysis, metric: Metric) -> str:
    assert analysis.comparison is not None
    only = analysis.comparison.arms[0]
    value = f"{metric.value(only.mean)} {metric.unit}".rstrip()
    return (
        f"Only {_named(only.name)} can be judged ({value}), so there is nothing to compare it with."
    )


def _untested(analysis: Analysis, metric: Metric) -> str:
    assert analysis.comparison is not None
    best = analysis.comparison.arms[0]
    return (
        f"Nothing can be ranked: there is one seed per arm. {_named(best.name)} has the best "
        f"{metric.label} ({metric.value(best.mean)}), and another seed could turn the order around."
    )


def _answers(analysis: Analysis, metric: Metric) -> list[str]:
    comparison = analysis.comparison
    assert comparison is not None
    n, head = len(comparison.arms), comparison.groups[0]
    if len(head.members) == n:
        return [_all_tied(analysis, n)]
    best = f"{metric.value(comparison.arm(head.head).mean)} {metric.unit}".rstrip()
    outside = [s.arm.name for s in analysis.ranked if s.arm.name not in head.members]
    top_name = _named(head.head)
    behind = [
        f"{_named(name)} by {_distance(analysis, metric, head.head, name)}" for name in outside
    ]
    if n == 2:
        distance = _distance(analysis, metric, head.head, outside[0])
        return [f"{_named(outside[0])} is worse than {top_name} by {distance}, more than noise."]
    rest = f"; and {len(behind) - _SHOWN_BEHIND} more" if len(behind) > _SHOWN_BEHIND else ""
    worse = f"Worse than {top_name}: {'; '.join(behind[:_SHOWN_BEHIND])}{rest}."
    if len(head.members) == 1:
        top = f"{top_name} is best ({best}): all {n - 1} others are worse by more than noise."
    else:
        top = (
            f"{len(head.members)} of {n} arms cannot be told apart at the top: "
            f"{_all_named(head.members)}. The best mean is that of {top_name} ({best})."
        )
    return [top, worse, _against_base(analysis)]


def _all_tied(analysis: Analysis, n: int) -> str:
    comparison = analysis.comparison
    assert comparison is not None
    if n == 2:
        text = "The two arms do not differ by more than noise."
    elif any(pair.is_different for pair in comparison.pairs):
        text = f"None of the {n} arms differs from the best one by more than noise."
    else:
        text = f"None of the {n} arms differs from another by more than noise."
    return f"{text} That does not show that they are equal."


def _distance(analysis: Analysis, metric: Metric, best: str, name: str) -> str:
    """How far an arm is behind: 0.031 nats (0.015 to 0.048)."""
    assert analysis.comparison is not None
    d = analysis.comparison.pair(name, best).difference
    text = metric.size(d.mean)
    if d.low is not None and d.high is not None:
        ends = sorted((d.low, d.high), key=abs)
        sign = 1 if d.mean > 0 else -1
        text += f" ({metric.value(sign * ends[0])} to {metric.value(sign * ends[1])})"
    return text


def _against_base(analysis: Analysis) -> str:
    """Where the base arm stands; nothing if it is the best, which was said before."""
    base, ranked = analysis.study.base, analysis.ranked
    order = [s.arm.name for s in ranked]
    if base not in order or order[0] == base:
        return ""
    judged = [s for s in ranked if s.against_base is not None]
    different = [s.arm.name for s in judged if s.against_base and s.against_base.is_different]
    better = [name for name in different if order.index(name) < order.index(base)]
    worse = [name for name in different if name not in better]
    same = [s.arm.name for s in judged if s.arm.name not in different]
    parts = [
        f"better: {_all_named(better)}" if better else "none is better",
        f"worse: {_all_named(worse)}" if worse else "",
        f"not told apart from it: {_all_named(same)}" if same else "",
    ]
    return f"Against the base arm {_named(base)}: {'; '.join(part for part in parts if part)}."


# --- noise --------------------------------------------------------------------------------------


def _noise(analysis: Analysis, metric: Metric) -> list[str]:
    floor, base = analysis.floor, analysis.study.base
    if floor is None or floor.sd is None:
        return [
            f"The noise is unknown, as {_named(base)} has no second seed. Without it no "
            "difference can be judged."
        ]
    spread = f"standard deviation over {plural(floor.n, 'seed')}"
    if floor.sd_low is not None and floor.sd_high is not None:
        low, high = metric.size(floor.sd_low), metric.size(floor.sd_high)
        spread += f", true value between {low} and {high}"
    texts = [
        f"Noise: the seed alone moves the {metric.label} of {_named(base)} by "
        f"{metric.size(floor.sd)} "
        f"({spread})."
    ]
    if analysis.detectable is not None:
        texts.append(f"{_detectable(analysis, metric)} {_needed(analysis, metric)}".rstrip())
    return texts


def _detectable(analysis: Analysis, metric: Metric) -> str:
    n = analysis.comparison.n_tested if analysis.comparison else 0
    comparisons = f" and {plural(n, 'comparison')}" if n > 1 else ""
    return (
        f"With {plural(analysis.n_seeds, 'seed')}{comparisons}, a true difference of "
        f"{metric.size(analysis.detectable)} is found in 8 of 10 studies like this one; smaller "
        "ones are mostly missed."
    )


def _needed(analysis: Analysis, metric: Metric) -> str:
    if not analysis.needed:
        return ""
    parts = [
        f"{metric.size(effect)}: {'more than 1,000' if seeds is None else seeds}"
        for effect, seeds in analysis.needed
    ]
    return f"Seeds needed for a difference of {', '.join(parts)}."


# --- what else must be known --------------------------------------------------------------------


def _warnings(analysis: Analysis) -> list[str]:
    study = analysis.study
    found = []
    if study.is_smoke:
        found.append(
            "A smoke run: tiny models and short training, to see that the study works. "
            "Its figures say nothing about the question."
        )
    if study.is_as_published:
        found.append(
            "This repeats a published design on purpose, with its faults. It is here for the "
            "record; draw no conclusion from it."
        )
    unigram = [run.unigram for run in study.runs if run.unigram is not None]
    losses = [run.results["loss_nats"] for a in study.arms for run in a.finished
              if "loss_nats" in run.results]  # fmt: skip
    if study.metric == "loss_nats" and unigram and losses and min(losses) >= min(unigram):
        found.append(
            f"No run is below the unigram entropy ({min(unigram):.3f} nats per token): none has "
            "learned to use the text before a token, so their order says little."
        )
    return found


def _notes(analysis: Analysis) -> list[str]:
    found = []
    by_reason: dict[str, list[str]] = {}
    for standing in analysis.standings:
        if standing.arm.why_not:
            by_reason.setdefault(standing.arm.why_not.rstrip("."), []).append(standing.arm.name)
    if by_reason:
        parts = [f"{_all_named(names)} ({reason})" for reason, names in by_reason.items()]
        found.append(f"Not ranked: {'; '.join(parts)}.")
    failed = [
        arm.name for arm in analysis.study.arms if any(run.status == "failed" for run in arm.runs)
    ]
    if failed:
        found.append(f"Runs failed in {_all_named(failed)}; their errors are below.")
    return found


def uneven_times(analysis: Analysis) -> str:
    """Why times are not compared; empty where they may be."""
    parts = [
        f"{QUANTITIES[cost].label.lower()} by a factor of up to {ratio:.1f}"
        for cost, ratio in analysis.uneven_times.items()
    ]
    if not parts:
        return ""
    return (
        f"Equal runs of one arm differ in {listed(parts)}: they shared the machine with each other "
        "or with other work. So nothing is drawn against such a time; do not compare arms by it."
    )


def falsified_by(analysis: Analysis, metric: Metric) -> str:
    """What another run of this study would have to show for its answer to be wrong."""
    comparison = analysis.comparison
    if comparison is None or comparison.n_tested == 0:
        return "nothing was shown that could be wrong"
    head = comparison.groups[0]
    if len(head.members) == len(comparison.arms):
        size = metric.size(analysis.detectable)
        return f"a difference of {size} or more between two of these arms, with new seeds"
    outside = next(arm.name for arm in comparison.arms if arm.name not in head.members)
    return (
        f"{outside} level with {head.head} or ahead of it with new seeds, on other text, or at "
        "another length"
    )
