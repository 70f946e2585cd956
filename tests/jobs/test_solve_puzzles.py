"""Puzzles as people write them, and answers judged by the rules."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mixlab.core.config import decode
from mixlab.core.errors import DataError, LabError
from mixlab.jobs.refine.puzzles import read_puzzles, stated_puzzles
from mixlab.jobs.refine.solving import solve_for_run, solve_puzzles
from mixlab.jobs.refine.trained import TrainedSolver
from mixlab.nn.recursion.refiner import Refiner, RefinerConfig
from mixlab.tasks.maze.made import Maze
from mixlab.tasks.sudoku.dug import SudokuDug

TASK = SudokuDug(size=4, blanks=(8, 12))
PUZZLE = "1... ..3. .4.. ...2"
SOLUTION = "1324 4231 2413 3142"


class Told(Refiner):
    """Answers what it is told, whatever the question."""

    answer: np.ndarray

    def forward(self, state, inputs):
        out = super().forward(state, inputs)
        hot = torch.nn.functional.one_hot(torch.from_numpy(self.answer).long(), 6).float()
        return out._replace(logits=hot.expand(len(inputs), -1, -1))


def solver(answer: str) -> TrainedSolver:
    cfg = {
        "vocab_size": 6, "grid": [4, 4], "d_model": 8, "L_cycles": 1, "H_cycles": 1,
        "block": {
            "sequence_mixer": {"kind": "attention", "n_heads": 2, "head_dim": 4},
            "channel_mixer": {"kind": "mlp", "d_ff": 12},
        },
        "halting": {"kind": "bce", "halt_max_steps": 3},
    }  # fmt: skip
    model = Told(decode(RefinerConfig, cfg)).eval()
    model.answer = TASK.parse_question(answer)
    return TrainedSolver(model, TASK, step=1, exit_threshold=None)


@pytest.mark.parametrize(
    "text",
    [PUZZLE, "1...\n..3.\n.4..\n...2\n", "1000003004000002", "1 . | . .\n. . | 3 .\n----+----\n"
     ". 4 | . .\n. . | . 2"],
)  # fmt: skip
def test_ways_to_write_a_puzzle(text):
    assert read_puzzles(TASK, text)[0].tolist() == TASK.parse_question(PUZZLE).tolist()


def test_files_of_lines_and_of_grids(tmp_path):
    lines, grids = tmp_path / "lines.txt", tmp_path / "grids.txt"
    lines.write_text(f"{PUZZLE}\n1000003004000002\n")
    grids.write_text("// two of them\n\n1...\n..3.\n.4..\n...2\n\n\n1000\n0030\n0400\n0002\n")
    for path in (lines, grids):
        found = read_puzzles(TASK, str(path))
        assert len(found) == 2 and all((p == found[0]).all() for p in found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1... ..3.", "has 8 cells: expected 16"),
        (PUZZLE + "1", "has 17 cells: expected 16"),
        ("1..x ..3. .4.. ...2", "cell 4 of .* = 'x': expected one of"),
        ("1..5 ..3. .4.. ...2", "cell 4 of .* = '5'"),
        ("nowhere.txt", "no such file"),
    ],
)
def test_what_is_no_puzzle_is_refused(text, message):
    with pytest.raises(DataError, match=message):
        read_puzzles(TASK, text)


def test_a_wrong_line_of_a_file_is_named(tmp_path):
    path = tmp_path / "puzzles.txt"
    path.write_text(f"{PUZZLE}\n\n1...\n..3.\n.4..\n")
    with pytest.raises(DataError, match=r"puzzles.txt, line 3: .* has 12 cells"):
        read_puzzles(TASK, str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not a readable text file"):
        read_puzzles(TASK, str(path))
    path.write_text("\n")
    with pytest.raises(DataError, match="holds no puzzle"):
        read_puzzles(TASK, str(path))


@pytest.mark.parametrize(
    ("text", "message"), [("11.. .... .... ....", "no solution"), ("1" + 15 * ".", "more than one")]
)
def test_puzzles_without_one_answer_are_refused(text, message):
    good, bad = TASK.parse_question(PUZZLE), TASK.parse_question(text)
    with pytest.raises(DataError, match=f"puzzle 2 of 2: .*{message}"):
        solve_puzzles(solver(SOLUTION), [good, bad])


def test_answers_are_judged_by_the_rules():
    question = [TASK.parse_question(PUZZLE)]
    (right,) = solve_puzzles(solver(SOLUTION), question, with_film=True)
    assert right.is_exact and right.is_valid and right.n_wrong == 0 and right.steps == 3
    assert len(right.film) == len(right.film_confidence) == 3
    swapped = "2314" + SOLUTION.replace(" ", "")[4:]
    (wrong,) = solve_puzzles(solver(swapped), question)
    assert not wrong.is_exact and not wrong.is_valid and wrong.n_wrong == 2
    assert solve_puzzles(solver(SOLUTION), question, exit_threshold=-100.0)[0].steps == 1
    assert solve_puzzles(solver(SOLUTION), question, num_rollouts=2)[0].steps == 6


def test_puzzles_as_python_has_them(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text(f"{PUZZLE}\n{PUZZLE}\n")
    want = TASK.parse_question(PUZZLE).tolist()
    for given, n in ((PUZZLE, 1), (path, 2), ([PUZZLE] * 3, 3)):
        assert [q.tolist() for q in stated_puzzles(TASK, given)] == [want] * n


@pytest.mark.parametrize(
    ("puzzles", "message"),
    [
        (5, "puzzles = 5: expected a puzzle as text"),
        ([], "at least one puzzle"),
        ([PUZZLE, 3], "expected a puzzle as text"),
        ([PUZZLE, "1.."], "puzzle 2 of 2: .*has 3 cells"),
    ],
)
def test_what_is_no_puzzle_in_python_is_refused(puzzles, message):
    with pytest.raises(DataError, match=message):
        stated_puzzles(TASK, puzzles)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_steps": 0}, "max_steps = 0: expected a whole number from 1 to 1000"),
        ({"max_steps": 2.5}, "max_steps = 2.5"),
        ({"num_rollouts": True}, "num_rollouts = True"),
        ({"seed": -1}, "seed = -1"),
        ({"test": 3}, "test = 3: expected either"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message, tmp_path):
    with pytest.raises(LabError, match=message):
        solve_for_run(solver(SOLUTION), tmp_path, PUZZLE, **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"exit_threshold": float("nan")}, "exit_threshold = nan: expected a number"),
     ({"exit_threshold": "x"}, "exit_threshold = 'x': expected a number"),
     ({"exit_threshold": 0.5, "all_steps": True}, "expected without all_steps")],
)  # fmt: skip
def test_thresholds_that_are_none_or_idle(settings, words, tmp_path):
    with pytest.raises(LabError, match=words):
        solve_for_run(solver(SOLUTION), tmp_path, PUZZLE, **settings)


def test_the_run_own_threshold_ends_early_unless_all_steps_are_asked_for(tmp_path):
    eager = replace(solver(SOLUTION), exit_threshold=-100.0)
    assert solve_for_run(eager, tmp_path, PUZZLE)[0].steps == 1
    assert solve_for_run(eager, tmp_path, PUZZLE, all_steps=True)[0].steps == 3
    assert solve_for_run(eager, tmp_path, PUZZLE, all_steps=True, max_steps=2)[0].steps == 2
    (found,) = solve_for_run(eager, tmp_path, PUZZLE)
    assert found.text == TASK.render(found.question, found.answer)


def test_mazes_are_read_too():
    task = Maze(size=5, min_path=2)
    example = task.example(1, 0)
    found = read_puzzles(task, task.question_text(example.question))
    assert (found[0] == example.question).all()
