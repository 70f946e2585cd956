"""One-dimensional ARC tasks: every rule by hand, and demonstrations that settle the answer."""

import hashlib
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixlab.core.config import decode
from mixlab.core.errors import ConfigError, DataError
from mixlab.tasks import Arc1D
from mixlab.tasks.arc_1d_rules import RULES

HAND_CASES = {
    "move-right-1": ("..333...", "...333.."),
    "move-right-2": ("..333...", "....333."),
    "move-right-3": ("..333...", ".....333"),
    "move-left-1": ("..333...", ".333...."),
    "move-left-2": ("..333...", "333....."),
    "slide-left": (".1..22.3", "1223...."),
    "slide-right": (".1..22.3", "....1223"),
    "mirror": (".1..22.3", "3.22..1."),
    "fill": (".4...4..", ".44444.."),
    "hollow": ("5555.666", "5..5.6.6"),
    "denoise": (".7.888.9", "...888.."),
    "extend": (".1..2...", ".1112222"),
    "recolour-by-longest": ("11.222.3", "22.222.2"),
    "recolour-by-shortest": ("11.222.3", "33.333.3"),
    "keep-longest": ("11.222.3", "...222.."),
    "swap-colours": ("11..222.", "22..111."),
    "cycle-colours": ("1.22.333", "3.11.222"),
}


def row(text: str) -> tuple[int, ...]:
    return tuple(int(char) for char in text.replace(".", "0"))


def test_every_rule_by_hand() -> None:
    assert set(HAND_CASES) == set(RULES)
    for name, (before, after) in HAND_CASES.items():
        assert RULES[name].apply(row(before)) == row(after), name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("move-right-3", "....333."),
        ("move-left-1", "333....."),
        ("fill", ".4...5.."),
        ("recolour-by-longest", "22.33..."),
        ("swap-colours", "11..1..."),
    ],
)
def test_rules_say_nothing_where_they_do_not_apply(name: str, text: str) -> None:
    assert RULES[name].apply(row(text)) is None


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(RULES)), seed=st.integers(0, 2**32), width=st.integers(8, 40))
def test_renaming_colours_commutes_with_every_rule(name: str, seed: int, width: int) -> None:
    rng = random.Random(seed)
    before = RULES[name].sample(rng, width)
    assert len(before) == width
    names = [0, *rng.sample(range(1, 10), 9)]
    after = RULES[name].apply(before)
    renamed = RULES[name].apply(tuple(names[c] for c in before))
    assert renamed == (None if after is None else tuple(names[c] for c in after))


@pytest.mark.parametrize("name", sorted(RULES))
def test_demonstrations_settle_the_answer(name: str) -> None:
    task = Arc1D(rules=(name,), width=16, n_demos=3)
    for index in range(5):
        example = task.example(0, index)
        assert example.meta["difficulty"]["rule"] == name
        assert np.array_equal(task.solve(example.question), example.answer)
        grid = example.answer.reshape(task.shape).astype(int) - 2
        for before, after in zip(grid[::2], grid[1::2], strict=True):
            assert RULES[name].apply(tuple(before.tolist())) == tuple(after.tolist())
            assert not np.array_equal(before, after)


def test_demonstrations_that_contradict_are_refused() -> None:
    task = Arc1D(width=8, n_demos=1)
    rows = ["..333...", ".3.3.3.3", "..444...", "????????"]
    question = np.array([task.alphabet.index(c) for c in "".join(rows)], np.uint8)
    with pytest.raises(DataError, match="no rule fits its demonstrations"):
        task.solve(question)
    # A block in the middle of an odd row: mirroring and standing still are one.
    with pytest.raises(DataError, match="expected pixels in all rows but the last"):
        task.solve(np.full_like(question, 1))


def test_the_demonstrations_order_and_colours_do_not_matter() -> None:
    task = Arc1D(width=16, n_demos=3)
    example = task.example(0, 3)
    grid = example.answer.reshape(4, 2, 16)
    swapped = grid[[2, 0, 1, 3]].ravel()
    names = np.array([0, 1, 2, *(np.random.default_rng(0).permutation(9) + 3)], np.uint8)
    forms = task.keys(None, np.stack([example.answer, swapped, names[example.answer]]))
    assert len(set(forms)) == 1
    other_question = grid[[3, 1, 2, 0]].ravel()
    assert task.keys(None, other_question[None])[0] != forms[0]


def test_unknown_rules_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"rules = \['spin'\]: expected different names out of"):
        decode(Arc1D, {"rules": ["mirror", "spin"]})


def test_settings_that_cannot_settle_anything_end_with_an_error() -> None:
    """A row of one demonstration, so narrow that other rules nearly always fit as well."""
    with pytest.raises(DataError, match="Raise n_demos or width, or leave the rule out"):
        for index in range(300):
            Arc1D(width=8, n_demos=1, rules=("recolour-by-longest",), max_tries=1).example(0, index)


def test_a_seed_gives_the_same_rows_for_ever() -> None:
    """If this hash changes, raise `generator_version`: old seeds stand for other rows now."""
    content = hashlib.blake2b(digest_size=8)
    for index in range(20):
        content.update(Arc1D().example(5, index).answer.tobytes())
    assert (Arc1D.generator_version, content.hexdigest()) == (1, "bc7dc20fc0086127")
