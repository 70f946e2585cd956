import math

import pytest

from mixlab.core import units


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0"),
        (512, "512"),
        (8192, "8,192"),
        (9999, "9,999"),
        (9999.6, "10.0k"),
        (16384, "16.4k"),
        (999_499, "999k"),
        (999_500, "1.00M"),
        (1_020_000, "1.02M"),
        (9_996_000, "10.0M"),
        (7e9, "7.00B"),
        (15e12, "15.0T"),
        (1e16, "10,000T"),
        (-16384, "-16.4k"),
    ],
)
def test_count(n, text):
    assert units.count(n) == text


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (100 * 1024, "100 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (3.4 * 1024**3, "3.4 GiB"),
        (2**60, "1,024 PiB"),
    ],
)
def test_size(n, text):
    assert units.size(n) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0354, "35 ms"),
        (0.9996, "1.0 s"),
        (4.24, "4.2 s"),
        (9.96, "10 s"),
        (48.2, "48 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.7, "1 h 00 min"),
        (3 * 3600 + 7 * 60, "3 h 07 min"),
        (24 * 3600 - 1, "1 d 00 h"),
        (52 * 3600, "2 d 04 h"),
        (-125, "-2 min 05 s"),
    ],
)
def test_duration(seconds, text):
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0"), (1.234e15, "1.2e15"), (9.99e8, "1.0e9"), (5, "5.0e0")]
)
def test_flops(n, text):
    assert units.flops(n) == text


def test_percent():
    assert units.percent(0.3141) == "31.4 %"


@pytest.mark.parametrize(("x", "text"), [(9.996, "10.0"), (0.00123, "0.00123"), (512.4, "512")])
def test_three_digits(x, text):
    assert units.three_digits(x) == text


@pytest.mark.parametrize(
    "form",
    [units.count, units.size, units.duration, units.flops, units.percent, units.three_digits],
)
@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_is_missing_or_not_finite_has_a_form_too(form, value):
    assert form(value) == units.ABSENT
