"""How the arms trained: curves, seeds, learning rates, and what the tuning took."""

from mixlab.report.study.html import Html
from mixlab.report.study.view import View, paragraph, section
from mixlab.report.study.words import uneven_times


def curves(view: View) -> Html:
    """Mean curves against tokens, FLOPs and seconds."""
    if not any(run.curve.value for arm in view.study.arms for run in arm.finished):
        return Html("")
    is_uneven = "seconds" in view.analysis.uneven_times
    against = "tokens and FLOPs" if is_uneven else "tokens, FLOPs and seconds"
    text = (
        "The mean over seeds as it trained, on validation text, against what had been spent. All "
        f"share the vertical axis ({view.metric.axis}); the steep start is cut off. Compare "
        "arms at the end of their schedule only: while the learning rate is high, the order can "
        "differ from the final one. Point at a name to light up its line."
    )
    return section(
        "curves", f"{view.metric.title} against {against}", paragraph(text),
        paragraph(uneven_times(view.analysis), class_="small") if is_uneven else None,
        view.charts("curves", "three"),
        view.key([arm for arm in view.study.arms if any(r.curve.value for r in arm.finished)]),
    )  # fmt: skip


def seeds(view: View) -> Html:
    """One panel per arm with every seed."""
    if not any(len(arm.finished) > 1 for arm in view.study.arms):
        return Html("")
    text = (
        "Every seed as a thin line, against tokens; the thick line is their mean, the band its "
        f"95 % interval. Vertical axis: {view.metric.axis}."
    )
    return section("seeds", "Every seed", paragraph(text), view.charts("seeds", "many"))
