"""The adapter for reasoning-gym: compact texts that mean the package's own entries."""

import sys

import numpy as np
import pytest
import reasoning_gym

from mixlab.core.config import decode
from mixlab.core.errors import ConfigError, DataError, MissingPackageError
from mixlab.tasks import ReasoningGym
from mixlab.tasks.gym import END, _entries
from mixlab.tasks.gym_texts import TEXTS

WITHOUT_LETTERS = str.maketrans("", "", "[](){} ,'\n/*\u00d7")


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_compact_answers_are_the_packages_answers(name: str) -> None:
    entries = reasoning_gym.create_dataset(name, seed=4, size=8)
    for index in range(8):
        entry = entries[index]
        question, answer = TEXTS[name].read(entry)
        assert set(question + answer) <= set(TEXTS[name].characters)
        theirs = entry["answer"].translate(WITHOUT_LETTERS)
        ours = answer.translate(WITHOUT_LETTERS)
        if name == "ab":
            theirs = "".join(
                {"A#": "a", "#A": "A", "B#": "b", "#B": "B"}[t] for t in entry["answer"].split()
            )
        elif name == "isomorphic_strings":
            ours = {"T": "True", "F": "False"}[ours]
        elif name == "spell_backward":
            theirs = theirs.lower()
        elif name == "fraction_simplification":
            theirs = "".join(char for char in theirs if char.isdigit())
        assert ours == theirs


def test_arithmetic_can_be_worked_out_from_the_question() -> None:
    task = ReasoningGym(task="chain_sum")
    for index in range(20):
        question, answer, *_ = task.example(0, index)
        assert eval(task.question_text(question)[:-1]) == int(task.answer_text(question, answer))


def test_the_answer_slot_ends_with_end_tokens() -> None:
    task = ReasoningGym(task="gcd", question_size=20, answer_size=6)
    question, answer, given, _ = task.example(0, 0)
    slot = answer[20:].tolist()
    n = slot.index(END)
    assert n > 0 and set(slot[n:]) == {END}
    assert not given[20:].any() and given[:20].all()
    longer = answer.copy()
    longer[-1] = answer[20]  # the right characters, and one more at the far end
    assert task.check(question, longer, answer) == (False, False)


def test_options_reach_the_package() -> None:
    task = ReasoningGym(task="chain_sum", options={"min_terms": 5, "max_terms": 5})
    for index in range(5):
        example = task.example(0, index)
        assert example.meta["difficulty"]["num_terms"] == 5


def test_two_seeds_share_no_entries() -> None:
    """The package draws entry i by seed + i, which would make neighbouring seeds overlap."""
    task = ReasoningGym(task="count_bits")
    first, second = (
        {task.example(seed, index).question.tobytes() for index in range(100)} for seed in (0, 1)
    )
    assert not first & second


def test_what_does_not_fit_is_refused() -> None:
    task = ReasoningGym(task="chain_sum", question_size=3)
    with pytest.raises(ConfigError, match=r"question_size = 3: expected room for \d+ characters"):
        task.example(0, 0)
    task = ReasoningGym(task="binary_matrix", question_size=120, answer_size=2)
    with pytest.raises(ConfigError, match="answer_size = 2: expected room for"):
        task.example(0, 0)
    with pytest.raises(ConfigError, match=r"options = .*settings that reasoning-gym's gcd takes"):
        ReasoningGym(task="gcd", options={"wings": 2}).example(0, 0)
    with pytest.raises(ConfigError, match="task = 'leg_counting': expected one of ab, arc_1d"):
        decode(ReasoningGym, {"task": "leg_counting"})


def test_without_a_stored_answer_there_is_no_score() -> None:
    task = ReasoningGym(task="gcd")
    example = task.example(0, 0)
    with pytest.raises(DataError, match="give the expected one"):
        task.check(example.question, example.answer)


def test_the_package_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    _entries.cache_clear()
    with pytest.raises(MissingPackageError, match=r"pip install \"mixlab\[reasoning\]\""):
        ReasoningGym(task="gcd").example(0, 0)


def test_padding_is_no_character() -> None:
    task = ReasoningGym(task="gcd")
    question = task.example(0, 0).question
    assert np.array_equal(task.given(question), np.arange(task.length) < task.question_size)
