"""Mazes: shortest paths against a plain queue, ties, and answers that only look right."""

import hashlib
from collections import deque

import numpy as np
import pytest

from mixlab.core.config import decode
from mixlab.core.errors import ConfigError, DataError
from mixlab.tasks import Maze
from mixlab.tasks.maze.rules import FREE, GOAL, PATH, START, WALL

KINDS = [
    Maze(size=10, min_path=12),
    Maze(size=10, min_path=10, only_path=True),
    Maze(size=10, style="carved", min_path=10),
    Maze(size=11, style="carved", min_path=10),
]


def distances_and_counts(maze: np.ndarray) -> tuple[int, int]:
    """Steps from S to G and how many paths have so many, by a queue over cells."""
    n = len(maze)
    start, goal = (tuple(int(x[0]) for x in np.where(maze == t)) for t in (START, GOAL))
    distance, n_paths = {start: 0}, {start: 1}
    queue = deque([start])
    while queue:
        r, c = here = queue.popleft()
        for there in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
            if not (0 <= there[0] < n and 0 <= there[1] < n) or maze[there] == WALL:
                continue
            if there not in distance:
                distance[there], n_paths[there] = distance[here] + 1, 0
                queue.append(there)
            if distance[there] == distance[here] + 1:
                n_paths[there] += n_paths[here]
    return distance[goal], n_paths[goal]


@pytest.mark.parametrize("task", KINDS, ids=lambda task: f"{task.name}-{task.only_path}")
def test_paths_are_shortest(task: Maze) -> None:
    for index in range(40):
        example = task.example(0, index)
        maze = example.question.reshape(task.shape)
        length, n_paths = distances_and_counts(maze)
        assert (example.answer == PATH).sum() + 1 == length == example.meta["path"]
        assert length >= task.min_path
        assert example.meta["difficulty"]["only_path"] == (n_paths == 1)
        assert n_paths == 1 or not (task.only_path or task.style == "carved")
        # The marked cells with S and G alone are a maze whose only way is as long.
        marks = np.where(example.answer >= START, example.answer, WALL).reshape(task.shape)
        assert distances_and_counts(marks) == (length, 1)


@pytest.mark.parametrize("task", KINDS, ids=lambda task: f"{task.name}-{task.only_path}")
def test_what_training_shows_is_a_function_of_the_maze(task: Maze) -> None:
    examples = [task.example(0, index) for index in range(40)]
    questions = np.stack([example.question for example in examples])
    answers = np.stack([example.answer for example in examples])
    shown_q, shown_a = task.augment(questions, answers, 5, np.arange(40))
    assert np.array_equal(shown_a, np.stack([task.solve(question) for question in shown_q]))
    # Turned along with the maze, an answer is another one where several paths are shortest.
    _, turned = super(Maze, task).augment(questions, answers, 5, np.arange(40))
    only = [distances_and_counts(q.reshape(task.shape))[1] == 1 for q in shown_q]
    same = (turned == shown_a).all(axis=1)
    assert same[only].all() and (all(only) or not same.all())


def test_scattered_walls_stay_within_their_fractions() -> None:
    task = Maze(size=30, min_path=30, walls=(0.3, 0.4))
    fracs = [(task.example(0, index).question == WALL).mean() for index in range(20)]
    # Each cell is drawn by itself: 900 cells scatter a fraction by 0.016, four times that is rare.
    assert min(fracs) > 0.3 - 0.065 and max(fracs) < 0.4 + 0.065


def tokens(text: str, task: Maze) -> np.ndarray:
    return np.array([task.alphabet.index(char) for char in text.replace("\n", "")], np.uint8)


def test_any_shortest_path_is_valid_and_nothing_else() -> None:
    task = Maze(size=4, min_path=2)
    question = tokens("S...\n.##.\n.##.\n...G", task)
    stored = task.solve(question)
    other = tokens("Sooo\n.##o\n.##o\n...G", task)
    mirrored = tokens("S...\no##.\no##.\noooG", task)
    assert {stored.tobytes()} < {other.tobytes(), mirrored.tobytes()}
    verdicts = task.check_many(
        np.stack([question] * 2), np.stack([other, mirrored]), np.stack([stored] * 2)
    )
    assert verdicts.valid.all() and verdicts.exact.sum() == 1
    for wrong in (
        "Sooo\no##o\no##o\noooG",  # both ways
        "Sooo\n.##o\n.##.\n...G",  # stops early
        "Sooo\n.o#o\n.##.\n...G",  # goes through a wall
        "Sooo\n.##o\n.##o\no..G",  # a mark apart from the path
        "oooo\n.##o\n.##o\n...G",  # S is gone
        "S.oo\no##o\n.##o\n...G",  # enough marks, but no path
    ):
        assert task.check(question, tokens(wrong, task)) == (False, False), wrong


def test_a_detour_is_not_valid() -> None:
    task = Maze(size=4, min_path=2)
    question = tokens("S.G.\n....\n....\n####", task)
    assert task.check(question, tokens("SoG.\n....\n....\n####", task)) == (True, True)
    assert task.check(question, tokens("S.G.\nooo.\n....\n####", task)) == (False, False)


def test_start_beside_goal_needs_no_mark() -> None:
    task = Maze(size=4, min_path=2)
    question = tokens("SG..\n....\n....\n....", task)
    assert np.array_equal(task.solve(question), question)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("S#G.\n##..\n....\n....", "no path from S to G"),
        ("S.SG\n....\n....\n....", "has 2 cells S"),
        ("S...\n....\n....\n....", "has 0 cells G"),
    ],
)
def test_questions_that_are_no_maze_are_refused(text: str, error: str) -> None:
    task = Maze(size=4, min_path=2)
    with pytest.raises(DataError, match=error):
        task.check(tokens(text, task), tokens(text, task))


def test_a_path_too_long_to_find_ends_after_a_bounded_number_of_tries() -> None:
    with pytest.raises(DataError, match=r"no such maze in 20 tries.*Lower min_path"):
        Maze(size=10, min_path=60, max_tries=20).example(0, 0)
    with pytest.raises(ConfigError, match="min_path = 90: expected at most"):
        decode(Maze, {"size": 10, "min_path": 90})
    with pytest.raises(ConfigError, match=r"walls = .* no value with style 'carved'"):
        decode(Maze, {"style": "carved", "walls": [0.1, 0.2]})


def test_a_seed_gives_the_same_mazes_for_ever() -> None:
    """If this hash changes, raise `generator_version`: old seeds stand for other mazes now."""
    content = hashlib.blake2b(digest_size=8)
    for task in KINDS:
        for index in range(4):
            content.update(task.example(5, index).answer.tobytes())
    assert (Maze.generator_version, content.hexdigest()) == (1, "d5c66f0cf89f3ee8")


def test_free_cells_are_what_is_asked() -> None:
    example = KINDS[0].example(0, 0)
    assert set(example.question[~example.given].tolist()) == {FREE}
    assert set(example.question[example.given].tolist()) == {WALL, START, GOAL}
