"""What all sections of the page share: the analysis, the digits, the looks, and the links."""

import posixpath
import re
from functools import cached_property
from urllib.parse import quote

from mixlab.report.study.analysis import Analysis, Standing
from mixlab.report.study.charts import Chart
from mixlab.report.study.comparison_drawings import forest, fronts
from mixlab.report.study.drawings import Brush, loss_curves, seed_panels
from mixlab.report.study.figures import digits_for
from mixlab.report.study.html import Content, Html, join, link, tag
from mixlab.report.study.material import Arm, Run
from mixlab.report.study.metrics import Metric, describe_metric
from mixlab.report.study.palette import Look, look
from mixlab.report.study.rate_drawings import grid_panels, rate_panels
from mixlab.report.study.scene import Scene, lay_out
from mixlab.report.study.svg import marker_svg, write_svg
from mixlab.report.study.words import CLOSE, OPEN, Sentence


class View:
    """One report being written."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis, self.study = analysis, analysis.study
        self.looks: dict[str, Look] = {
            arm.name: look(number) for number, arm in enumerate(self.study.arms)
        }

    @cached_property
    def metric(self) -> Metric:
        spreads = [s.summary.sd for s in self.analysis.standings if s.summary]
        digits = digits_for(spreads, most=4)
        return describe_metric(self.study.metric, self.study.lower_is_better, digits)

    @cached_property
    def scenes(self) -> dict[str, list[Scene]]:
        """Every picture of the report by name, as the charts it is made of."""
        brush = Brush(self.analysis, self.metric, self.looks, self.href)
        differences = forest(brush)
        charts: dict[str, list[Chart]] = {
            "differences": [differences] if differences else [],
            "curves": loss_curves(brush),
            "seeds": seed_panels(brush),
            "rates": rate_panels(brush) or grid_panels(brush),
            "fronts": fronts(brush),
        }
        return {name: [lay_out(chart) for chart in those] for name, those in charts.items()}

    # --- links --------------------------------------------------------------------------------

    def href(self, run: Run) -> str:
        """The run folder, relative to the page; nothing for a run without one."""
        return quote(posixpath.join(run.folder, "")) if run.folder else ""

    def arm_id(self, arm: Arm) -> str:
        return f"arm-{self.looks[arm.name].series}"

    def arm_link(self, arm: Arm) -> Html:
        """The arm's swatch and name, leading to its runs."""
        own = self.looks[arm.name]
        swatch = Html(marker_svg(own.marker, own.colour, own.dash))
        return tag(
            "a", swatch, tag("span", arm.name), href=f"#{self.arm_id(arm)}",
            class_=f"arm k{own.series}", title=arm.about or None,
        )  # fmt: skip

    def seeds(self, arm: Arm) -> Html:
        """A link to the run of each seed."""
        values = {run.seed: run.results.get(self.study.metric) for run in arm.finished}
        return join(
            [
                link(str(run.seed), self.href(run),
                     title=f"seed {run.seed}: {self.metric.value(values[run.seed])}")
                for run in arm.finished
            ],
            " ",
        )  # fmt: skip

    def mean_link(self, standing: Standing) -> Html:
        """The arm's figure, leading to its runs."""
        text = self.metric.value(standing.summary.mean if standing.summary else None)
        if len(standing.arm.finished) == 1:
            return link(text, self.href(standing.arm.finished[0]))
        return link(text, f"#{self.arm_id(standing.arm)}")

    def with_links(self, sentence: Sentence) -> Html:
        """A sentence in which every arm's name leads to its runs and is not broken over lines."""
        parts: list[str] = []
        for place, part in enumerate(re.split(f"[{OPEN}{CLOSE}]", sentence.marked)):
            is_name = place % 2 == 1  # every other part stands between marks
            own = self.looks[part].series if is_name else -1
            parts.append(tag("a", part, href=f"#arm-{own}", class_="name") if is_name else part)
        return join(parts)

    def to_runs(self, arm: Arm, text: Content) -> Html:
        """A figure that leads to the runs that it comes from."""
        return tag("a", text, href=f"#{self.arm_id(arm)}", class_="figure") if text else Html("")

    # --- pieces -------------------------------------------------------------------------------

    def charts(self, name: str, class_: str) -> Html:
        """The charts of one picture beside each other, with the link to the PNG."""
        drawn = [Html(f'<div class="chart">{write_svg(s)}</div>') for s in self.scenes[name]]
        return tag("div", *drawn, class_=f"charts {class_}") if drawn else Html("")

    def key(self, arms: list[Arm] | None = None) -> Html:
        """The key of the arms' looks; pointing at one lights up its lines."""
        chosen = list(self.study.arms) if arms is None else arms
        return tag("p", *(self.arm_link(arm) for arm in chosen), class_="key")


def section(name: str, title: str, *content: Content) -> Html:
    """A part of the page; nothing if it has no content."""
    if not any(content):
        return Html("")
    return tag("section", tag("h2", title), *content, id=name)


def paragraph(*content: Content, class_: str | None = None) -> Html:
    return tag("p", *content, class_=class_)
