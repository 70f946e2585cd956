"""Figures as a reader wants them: digits that mean something, and names for quantities."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from mixlab.core import units

MINUS, DASH, TIMES = "\u2212", "\u2013", "\u00d7"


class Quantity(NamedTuple):
    """What is measured or spent, and how it is written."""

    name: str
    label: str
    unit: str
    form: Callable[[float | None], str]
    lower_is_better: bool = True


def fixed(value: float | None, digits: int) -> str:
    """A figure with a fixed number of digits behind the point."""
    if value is None or not math.isfinite(value):
        return units.ABSENT
    text = f"{value:,.{digits}f}"
    # A figure that rounds to nothing has no sign.
    return text.lstrip("-") if not text.strip("-0.,") else text.replace("-", MINUS)


def signed(value: float | None, digits: int) -> str:
    """A difference: +0.021, a true minus, 0.000 without a sign."""
    text = fixed(value, digits)
    is_plain = value is None or not math.isfinite(value) or not text.strip("0.,")
    return text if is_plain or text.startswith(MINUS) else f"+{text}"


def digits_for(spreads: Iterable[float | None], least: int = 3, most: int = 5) -> int:
    """Digits behind the point that show two digits of the smallest spread, within limits."""
    known = [s for s in spreads if s is not None and math.isfinite(s) and s > 0]
    if not known:
        return least
    return min(most, max(least, 1 - math.floor(math.log10(sorted(known)[len(known) // 2]))))


def p_value(p: float | None) -> str:
    """p = 0.012, or p < 0.001."""
    if p is None or not math.isfinite(p):
        return units.ABSENT
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.0995 else f"{p:.2f}"


def percent(fraction: float | None, digits: int = 1) -> str:
    return units.ABSENT if fraction is None else f"{fixed(100 * fraction, digits)} %"


def rate(value: float | None) -> str:
    """A learning rate: 3e-4, 1.4e-3."""
    if value is None or not math.isfinite(value) or value <= 0:
        return units.ABSENT
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def plural(n: int, word: str, more: str = "") -> str:
    """1 seed, 3 seeds."""
    return f"{n:,} {word if n == 1 else more or word + 's'}"


def listed(names: list[str], at_most: int = 6) -> str:
    """a, b and c; a long list is cut with the number of what is left."""
    if len(names) > at_most + 1:
        return f"{', '.join(names[:at_most])} and {len(names) - at_most} more"
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


QUANTITIES = {
    q.name: q
    for q in (
        Quantity("tokens", "Training tokens", "tokens", units.count),
        Quantity("steps", "Steps", "steps", units.count),
        Quantity("flops", "Training FLOPs", "FLOPs", units.flops),
        Quantity("seconds", "Training time", "seconds", units.duration),
        Quantity("params", "Parameters", "parameters", units.count),
        Quantity("active_params", "Active parameters", "parameters", units.count),
        Quantity("memory_bytes", "Peak memory", "bytes", units.size),
        Quantity("state_bytes", "Decoding state", "bytes per sequence", units.size),
        Quantity("memory_estimate", "Training memory, estimated", "bytes", units.size),
        Quantity("decode_flops", "Decode cost", "FLOPs per token", units.flops),
        Quantity("decode_ms", "Decode time", "ms per token", units.three_digits),
    )
}
