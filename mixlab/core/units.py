"""Numbers as people read them; every table, status line and report uses these forms."""

import math

_SUFFIXES = ("", "k", "M", "B", "T")
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")

ABSENT = "n/a"
"""Stands for a number that is missing or not finite."""


def count(n: float | None) -> str:
    """Things that are counted: 512, 8,192, 16.4k, 1.02M, 7.00B.

    Exact below 10,000, three digits above.
    """
    if n is None or not math.isfinite(n):
        return ABSENT
    if abs(n) < 9999.5:
        return f"{n:,.0f}"
    power = 0
    # 999.5 of one unit would print as 1000 of it, so it goes to the next.
    while abs(n) >= 999.5 and power < len(_SUFFIXES) - 1:
        n, power = n / 1000, power + 1
    if abs(n) >= 999.5:
        return f"{n:,.0f}{_SUFFIXES[power]}"
    return f"{three_digits(n)}{_SUFFIXES[power]}"


def three_digits(x: float | None) -> str:
    """Three significant digits without an exponent: 1.02, 16.4, 512; 0.00123 below one."""
    if x is None or not math.isfinite(x):
        return ABSENT
    if x == 0:
        return "0"
    # Rounding first: 9.996 has one digit in front of the point before it and two after it.
    magnitude = math.floor(math.log10(abs(float(f"{x:.2e}"))))
    return f"{x:,.{max(0, 2 - magnitude)}f}"


def size(n_bytes: float | None) -> str:
    """Memory and files: 512 B, 1.5 KiB, 3.4 GiB."""
    if n_bytes is None or not math.isfinite(n_bytes):
        return ABSENT
    power = 0
    while abs(n_bytes) >= 1023.5 and power < len(_BINARY) - 1:
        n_bytes, power = n_bytes / 1024, power + 1
    digits = 1 if power and abs(n_bytes) < 99.95 else 0
    return f"{n_bytes:,.{digits}f} {_BINARY[power]}"


def duration(seconds: float | None) -> str:
    """A span of time: 35 ms, 4.2 s, 48 s, 2 min 05 s, 3 h 07 min, 2 d 04 h."""
    if seconds is None or not math.isfinite(seconds):
        return ABSENT
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def flops(n: float | None) -> str:
    """Floating-point operations, a total or a rate: 1.2e15."""
    if n is None or not math.isfinite(n):
        return ABSENT
    if n == 0:
        return "0"
    mantissa, _, exponent = f"{n:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def percent(fraction: float | None) -> str:
    """A fraction as a percentage: 31.4 %."""
    if fraction is None or not math.isfinite(fraction):
        return ABSENT
    return f"{100 * fraction:.1f} %"
