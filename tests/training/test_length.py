"""Lengths of runs: texts in and out, rounding, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixlab.core.config import Config, decode, dump_yaml, parse_yaml, to_tree
from mixlab.core.errors import ConfigError, Rule
from mixlab.training.length import Length


class Holder(Config):
    length: Length = Length(1, "steps")


@pytest.mark.parametrize(
    ("text", "amount", "unit", "canonical"),
    [
        (400, 400, "steps", "400 steps"),
        ("400", 400, "steps", "400 steps"),
        ("1 step", 1, "steps", "1 steps"),
        ("2k steps", 2000, "steps", "2000 steps"),
        ("2M tokens", 2_000_000, "tokens", "2M tokens"),
        ("1.5M tokens", 1_500_000, "tokens", "1500K tokens"),
        ("1_000_001 tokens", 1_000_001, "tokens", "1000001 tokens"),
        ("2e9 tokens", 2 * 10**9, "tokens", "2B tokens"),
        ("1e15 flops", 10**15, "flops", "1e+15 flops"),
        ("3T FLOPs", 3 * 10**12, "flops", "3000000000000 flops"),
        ("90 seconds", 90, "seconds", "90 seconds"),
        ("0.5 seconds", 0.5, "seconds", "0.5 seconds"),
        ("3 minutes", 180, "seconds", "180 seconds"),
        ("1 hour", 3600, "seconds", "3600 seconds"),
    ],
)
def test_texts(text: object, amount: float, unit: str, canonical: str) -> None:
    length = decode(Holder, {"length": text}).length
    assert (length.amount, length.unit, str(length)) == (amount, unit, canonical)
    assert Length.parse(canonical) == length
    assert hash(Length.parse(canonical)) == hash(length)


@pytest.mark.parametrize(
    "bad",
    [0, -3, True, 1.5, None, [], "", "steps", "3 epochs", "0 steps", "-1 tokens", "1.5 steps",
     "0.3 tokens", "nan flops", "inf seconds", "1e999 flops", "2m tokens", "3 4 steps", "1e400",
     "9" * 400, "1e-400 seconds"],
)  # fmt: skip
def test_bad_lengths_name_the_key_and_the_rule(bad: object) -> None:
    with pytest.raises(ConfigError, match=r"^length = .*expected a "):
        decode(Holder, {"length": bad})


@given(
    st.one_of(
        st.builds(Length, st.integers(1, 10**14), st.sampled_from(["steps", "tokens"])),
        st.builds(Length, st.floats(0.001, 0.999), st.just("seconds")),
        st.builds(lambda x: Length(int(x), "flops"), st.floats(1e15, 1e30)),
    )
)
def test_every_length_survives_the_config_file(length: Length) -> None:
    holder = decode(Holder, {"length": str(length)})
    assert holder.length == length
    assert decode(Holder, parse_yaml(dump_yaml(to_tree(holder)), "test")) == holder


def test_number_of_steps_rounds_down_but_never_to_zero() -> None:
    def n_steps(text: object) -> int:
        return Length.parse(text).n_steps(
            tokens_per_step=1000, flops_per_token=1e6, seconds_per_step=0.1
        )

    assert n_steps(7) == 7
    assert n_steps("2999 tokens") == 2
    assert n_steps("1 tokens") == 1
    assert n_steps("3.5e9 flops") == 3
    assert n_steps("1 flops") == 1
    assert n_steps("0.3 seconds") == 3  # 0.3 / 0.1 is 2.999... in floating point
    assert n_steps("0.01 seconds") == 1
    assert Length.parse("2M tokens").n_steps(1000, 1e6, None) == 2000


def test_a_text_is_needed_outside_configs_too() -> None:
    with pytest.raises(Rule, match="2M tokens"):
        Length.parse("soon")
