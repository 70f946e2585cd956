"""How the judged metric of a study is named and written."""

from typing import NamedTuple

from mixlab.core import units
from mixlab.report.study.figures import fixed, signed

_NAMES = {
    "loss_nats": ("validation loss", "nats per token", "nats"),
    "bits_per_byte": ("validation loss", "bits per byte", "bits per byte"),
    "perplexity": ("validation perplexity", "", ""),
    "accuracy": ("validation accuracy", "%", "points"),
    "exact_accuracy": ("solved exactly", "%", "points"),
    "valid_accuracy": ("solved validly", "%", "points"),
    "recall_accuracy": ("recall accuracy", "%", "points"),
}


class Metric(NamedTuple):
    """Words and digits for one metric; shares are shown in percent."""

    name: str
    label: str
    unit: str
    short_unit: str
    """The unit of a difference."""
    scale: float
    digits: int
    lower_is_better: bool

    def value(self, x: float | None) -> str:
        return units.ABSENT if x is None else fixed(self.scale * x, self.digits)

    def difference(self, x: float | None) -> str:
        return units.ABSENT if x is None else signed(self.scale * x, self.digits)

    def size(self, x: float | None) -> str:
        """The size of a difference, with its unit, in two or three digits."""
        if x is None:
            return units.ABSENT
        text = units.three_digits(float(f"{abs(self.scale * x):.2g}"))
        text = text.rstrip("0").rstrip(".") if "." in text else text
        unit = (
            self.short_unit.removesuffix("s")
            if text == "1" and self.scale != 1
            else self.short_unit
        )
        return f"{text} {unit}".rstrip()

    @property
    def title(self) -> str:
        """The label as a heading."""
        return self.label[:1].upper() + self.label[1:]

    @property
    def axis(self) -> str:
        return f"{self.label}, {self.unit}" if self.unit else self.label

    @property
    def better(self) -> str:
        return "lower is better" if self.lower_is_better else "higher is better"


def describe_metric(name: str, lower_is_better: bool, digits: int) -> Metric:
    """`digits` behind the point are for a metric that is not a share."""
    label, unit, short = _NAMES.get(name, (name.replace("_", " "), "", ""))
    is_share = unit == "%"
    return Metric(
        name, label, unit, short, 100.0 if is_share else 1.0,
        max(1, digits - 2) if is_share else digits, lower_is_better,
    )  # fmt: skip
