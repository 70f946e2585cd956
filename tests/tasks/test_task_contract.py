"""What holds for every kind of task: the same seeds, strict scores, symmetries, text, errors."""

import numpy as np
import pytest

from mixlab.core.config import decode, to_tree
from mixlab.core.errors import ConfigError, DataError, LabError
from mixlab.tasks import TASKS, Arc1D, Maze, ReasoningGym, Recall, SudokuDug
from mixlab.tasks.base import Task
from mixlab.tasks.names import named_task
from mixlab.tasks.prepare import TaskDataConfig

ALL = [
    SudokuDug(size=4, blanks=(8, 12)),
    SudokuDug(size=6, blanks=(16, 22)),
    SudokuDug(size=9, blanks=(20, 36)),
    Maze(size=10, min_path=12),
    Maze(size=9, style="carved", min_path=8),
    Maze(size=30, style="carved", min_path=110),
    Arc1D(),
    Recall(),
    ReasoningGym(task="chain_sum"),
    ReasoningGym(task="spiral_matrix", question_size=120, answer_size=120),
]
FILE_KINDS = {"sudoku-file", "maze-file"}  # see test_puzzle_files.py


@pytest.fixture(params=ALL, ids=lambda task: task.name)
def task(request: pytest.FixtureRequest) -> Task:
    return request.param


def rows(task: Task, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    examples = [task.example(seed, index) for index in range(n)]
    return np.stack([e.question for e in examples]), np.stack([e.answer for e in examples])


def test_every_kind_is_tested() -> None:
    assert {task.kind for task in ALL} | FILE_KINDS == set(TASKS)


def test_an_example_is_a_function_of_seed_and_index(task: Task) -> None:
    first, again = task.example(3, 5), task.example(3, 5)
    assert np.array_equal(first.question, again.question)
    assert np.array_equal(first.answer, again.answer) and first.meta == again.meta
    others = [task.example(3, 6), task.example(4, 5)]
    assert all(not np.array_equal(first.question, other.question) for other in others)


def test_shapes_tokens_and_givens(task: Task) -> None:
    example = task.example(0, 0)
    for tokens in example[:2]:
        assert tokens.shape == (task.length,) and tokens.dtype == np.uint8
        assert tokens.max() < task.vocab_size
    assert np.array_equal(example.given, task.given(example.question))
    assert np.array_equal(example.question[example.given], example.answer[example.given])
    assert (example.question[~example.given] == task.blank_token).all()
    assert (~example.given).any()
    assert example.meta["difficulty"]


def test_settings_survive_the_way_through_a_file(task: Task) -> None:
    assert decode(TASKS[task.kind], to_tree(task)) == task


def test_stored_answers_score_and_cheaters_do_not(task: Task) -> None:
    questions, answers = rows(task, 12)
    assert all(map(np.all, task.check_many(questions, answers, answers)))
    # The answer of another question, the question itself, and one symbol everywhere.
    for cheat in (np.roll(answers, 1, axis=0), questions, np.full_like(answers, answers[0, -1])):
        verdicts = task.check_many(questions, cheat, answers)
        assert not verdicts.exact.any() and not verdicts.valid.any()


def test_one_wrong_token_is_wrong(task: Task) -> None:
    questions, answers = rows(task, 4)
    rng = np.random.default_rng(0)
    places = rng.integers(0, task.length, 4)
    changed = answers.copy()
    changed[range(4), places] = (changed[range(4), places] + 1) % task.vocab_size
    verdicts = task.check_many(questions, changed, answers)
    assert not verdicts.exact.any() and not verdicts.valid.any()


def test_text_round_trip_and_strict_scores(task: Task) -> None:
    question, answer, *_ = task.example(1, 0)
    text = task.answer_text(question, answer)
    asked = task.question_text(question)
    assert np.array_equal(task.parse_answer(question, text), answer)
    assert task.score_text(question, f"\n{text} \n", answer) == (True, True)
    for cheat in (
        "",
        asked,
        f"{asked}\n{text}",
        f"The answer is {text}",
        f"{text}\n{text}",
        text[:-1],
        text + text[-1],
        text + " or not",
    ):
        assert task.score_text(question, cheat, answer) == (False, False), cheat


def test_symmetric_images_are_equivalent_valid_and_of_the_same_split(task: Task) -> None:
    questions, answers = rows(task, 40)
    moved_q, moved_a = task.augment(questions, answers, 5, np.arange(40))
    assert task.keys(moved_q, moved_a) == task.keys(questions, answers)
    homes, moved_homes = (
        task.homes("train", task.split_keys(q, a))
        for q, a in ((questions, answers), (moved_q, moved_a))
    )
    assert moved_homes == homes
    assert task.check_many(moved_q, moved_a, moved_a).valid.all()


def test_augmentation_depends_on_the_index_alone(task: Task) -> None:
    questions, answers = rows(task, 6)
    whole = task.augment(questions, answers, 1, np.arange(6))
    part = task.augment(questions[4:], answers[4:], 1, np.arange(4, 6))
    assert all(np.array_equal(w[4:], p) for w, p in zip(whole, part, strict=True))
    if not isinstance(task, ReasoningGym):
        assert not np.array_equal(whole[0], questions)


def test_pictures_fit_or_stack(task: Task) -> None:
    example = task.example(0, 0)
    alone = task.render(example.question)
    wide = task.render(example.question, example.answer, width=10_000)
    narrow = task.render(example.question, example.answer, width=1)
    assert len(wide.splitlines()) == len(alone.splitlines())
    assert len(narrow.splitlines()) > len(wide.splitlines())


def test_wrong_shapes_and_tokens_are_refused(task: Task) -> None:
    question, answer, *_ = task.example(0, 0)
    with pytest.raises(DataError, match=r"has shape .*: expected"):
        task.check(question, answer[:-1], answer)
    with pytest.raises(DataError, match=r"has shape .*: expected"):
        task.check(question.reshape(task.shape), answer, answer)
    with pytest.raises(DataError, match=r"answers\[0, 3\] .*expected a token from 0"):
        strange = answer.astype(np.int64)
        strange[3] = task.vocab_size
        task.check(question, strange, answer)
    with pytest.raises(DataError, match="expected integers"):
        task.check(question, answer.astype(float), answer)
    with pytest.raises(DataError, match="expected one for each of the 2 questions"):
        task.check_many(np.stack([question] * 2), answer[None], answer[None])


@pytest.mark.parametrize(
    "name",
    [
        "sudoku-dug-9x9-20-36",
        "sudoku-dug-9x9-50-54-search",
        "maze-30x30-path-110-carved",
        "arc_1d-16-demos-3",
        "recall-8-pairs-4-queries-26-10",
        "reasoning-gym-gcd",
    ],
)
def test_a_name_stands_for_its_task(name: str) -> None:
    assert named_task(name).name == name


def test_a_config_takes_a_name_for_the_settings() -> None:
    config = decode(TaskDataConfig, {"task": "maze-12x12-path-20"})
    assert config.task == Maze(size=12, min_path=20)
    assert to_tree(config)["task"]["size"] == 12
    for tree, error in (
        ("sudoku-extreme", "task = 'sudoku-extreme': expected a group of settings with a kind, or"),
        ("sudoku-dug-9x9-20-80", r"task\.blanks = \[20, 80\]: expected two rising numbers"),
        ("maze", r"Did you mean task\.kind=maze"),
        (3, "task = 3: expected a group of settings"),
    ):
        with pytest.raises(ConfigError, match=error):
            decode(TaskDataConfig, {"task": tree})


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("sudoku-extreme", "expected a name such as sudoku-dug-6x6-16-22"),
        ("sudoku-dug-9x9-20-80", r"blanks = \[20, 80\]: expected two rising numbers from 1 to 64"),
        ("sudoku-dug-8x8-20-30", "size = 8: expected one of 4, 6 or 9|size = 8: expected one of"),
        ("maze-10x10-path-99", "min_path = 99: expected at most"),
        ("reasoning-gym-poetry", "task = 'poetry': expected one of ab,"),
    ],
)
def test_a_task_that_cannot_be_made_is_refused(name: str, error: str) -> None:
    with pytest.raises(LabError, match=error):
        named_task(name)
