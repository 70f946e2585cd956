"""Puzzle files of the user's: read as they are, or refused with the line."""

from pathlib import Path

import numpy as np
import pytest

from mixlab.core.config import decode, to_tree
from mixlab.core.errors import DataError
from mixlab.tasks import Maze, MazeFile, SudokuDug, SudokuFile
from mixlab.tasks.sets import build_set, prove_disjoint

SUDOKU = SudokuDug(size=4, blanks=(8, 10))
MAZE = Maze(size=6, min_path=5)
HEADER = "source,question,answer,rating"


def sudoku_lines(seed: int, n: int) -> list[str]:
    lines = []
    for index in range(n):
        example = SUDOKU.example(seed, index)
        question, answer = ("".join(SUDOKU.alphabet[t] for t in tokens) for tokens in example[:2])
        lines.append(f"made,{question},{answer},{index}")
    return lines


def maze_lines(seed: int, n: int) -> list[str]:
    lines = []
    for index in range(n):
        example = MAZE.example(seed, index)
        question, answer = ("".join("_# SGo"[t] for t in tokens) for tokens in example[:2])
        lines.append(f"made,{question},{answer},{index}")
    return lines


def write(path: Path, lines: list[str], header: str = HEADER) -> Path:
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def sudoku_file(
    tmp_path: Path, *lines: str, header: str = HEADER, **settings: object
) -> SudokuFile:
    path = write(tmp_path / "train.csv", list(lines), header)
    return SudokuFile(size=4, files={"train": path}, **settings)


def test_sudoku_files_become_sets(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", sudoku_lines(0, 60))
    test = write(tmp_path / "test.csv", sudoku_lines(1, 20))
    task = SudokuFile(size=4, files={"train": train, "test": test})
    made = build_set(task, "train", 20, 0)
    assert made.manifest["difficulty"]["blanks"]
    stored = {SUDOKU.example(0, index).question.tobytes() for index in range(60)}
    assert {row.tobytes() for row in made.inputs} <= stored
    held_out = build_set(task, "validation", 2, 0)
    assert not {row.tobytes() for row in held_out.inputs} & {r.tobytes() for r in made.inputs}
    assert len(build_set(task, "test", 15, 0)) == 15
    assert not np.array_equal(build_set(task, "train", 20, 1).inputs, made.inputs)
    assert task.check_many(made.inputs, made.labels).exact.all()
    assert decode(SudokuFile, to_tree(task)) == task


def test_files_that_share_puzzles_are_found_out(tmp_path: Path) -> None:
    lines = sudoku_lines(0, 20)
    train, test = write(tmp_path / "a.csv", lines), write(tmp_path / "b.csv", lines)
    task = SudokuFile(size=4, files={"train": train, "test": test})
    with pytest.raises(DataError, match="are equivalent"):
        prove_disjoint(task, build_set(task, "train", 10, 0), build_set(task, "test", 18, 0))


def test_a_row_without_an_answer_is_solved(tmp_path: Path) -> None:
    line = sudoku_lines(0, 1)[0].split(",")
    task = sudoku_file(tmp_path, line[1].replace(".", "0"), header="question")
    assert task.answer_text(None, task.example(0, 0).answer).replace("\n", "") == line[2]


GRID = "1234341221434321"


@pytest.mark.parametrize(
    ("question", "answer", "error"),
    [
        ("1234", GRID, "question: expected 16 characters for a 4x4 grid, found 4"),
        ("12343412214343x.", GRID, "found 'x' at place 15"),
        ("12343412214343..", GRID[:-1], "answer: expected 16 characters"),
        ("12343412214343..", "2" + GRID[1:], "changes the given in row 1, column 1"),
        ("12343412214343..", GRID[:-2] + "12", "the answer is no solution"),
        ("12343412214343..", GRID[:-1] + ".", "the answer is no solution"),
        ("11" + "." * 14, "", "expected at least 4 givens"),
        ("1123............", "", "has no solution"),
        ("1234............", "", "more than one solution"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, question: str, answer: str, error: str) -> None:
    good = sudoku_lines(0, 1)[0]
    task = sudoku_file(tmp_path, good, f"mine,{question},{answer},0", good)
    with pytest.raises(DataError, match=r"train\.csv, line 3.*" + error):
        list(task.candidates("train", 0))


def test_grading_refuses_several_solutions(tmp_path: Path) -> None:
    line = f"mine,1234............,{GRID},0"
    assert sudoku_file(tmp_path, line).example(0, 0).meta["rating"] == "0"
    with pytest.raises(DataError, match=r"line 2: .*more than one solution"):
        sudoku_file(tmp_path, line, grade=True).example(0, 0)
    graded = sudoku_file(tmp_path, sudoku_lines(0, 1)[0], grade=True).example(0, 0)
    assert graded.meta["difficulty"]["grade"] == "naked"


def test_files_of_another_layout_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1: expected a header with the column 'question'"):
        sudoku_file(tmp_path, header="a,b").example(0, 0)
    with pytest.raises(DataError, match=r"line 2: expected 4 fields as in the header, found 2"):
        sudoku_file(tmp_path, "made,1234").example(0, 0)
    with pytest.raises(DataError, match="the training file has fewer rows"):
        sudoku_file(tmp_path).example(0, 0)
    task = sudoku_file(tmp_path)
    (tmp_path / "train.csv").write_bytes(b"question\n\xff\xfe\n")
    fresh = SudokuFile(size=4, files={"train": tmp_path / "train.csv", "max_rows": 5})
    with pytest.raises(DataError, match="is not CSV in UTF-8"):
        fresh.example(0, 0)
    with pytest.raises(DataError, match=r"files\.test = None: .*downloads no puzzles"):
        build_set(task, "test", 1, 0)
    gone = SudokuFile(size=4, files={"train": tmp_path / "gone.csv"})
    with pytest.raises(DataError, match=r"gone\.csv': expected a CSV file, which is not there"):
        build_set(gone, "train", 1, 0)


def maze_task(tmp_path: Path, *lines: str) -> MazeFile:
    return MazeFile(size=6, files={"train": write(tmp_path / "train.csv", list(lines))})


def test_maze_files_become_sets(tmp_path: Path) -> None:
    task = maze_task(tmp_path, *maze_lines(0, 40))
    made = build_set(task, "train", 20, 0)
    assert task.check_many(made.inputs, made.labels, made.labels).valid.all()
    stored = {MAZE.example(0, index).question.tobytes() for index in range(40)}
    assert {row.tobytes() for row in made.inputs} <= stored


@pytest.mark.parametrize(
    ("question", "answer", "error"),
    [
        ("S G", "SoG", "expected 36 characters for a 6x6 maze, found 3"),
        ("SoG" + " " * 33, "", "expected only # . S G, found 'o' at place 2"),
        ("S G" + " " * 33, "S G" + " " * 33, "marks no shortest path"),
        ("S G" + " " * 33, "SoG" + "o" + " " * 32, "marks no shortest path"),
        ("S G" + " " * 33, "SoG" + "#" + " " * 32, "marks no shortest path"),
        ("S#G   #     " + " " * 24, "", "no path from S to G"),
        ("S  " + " " * 33, "", "has 0 cells G"),
    ],
)
def test_bad_mazes_are_named(tmp_path: Path, question: str, answer: str, error: str) -> None:
    task = maze_task(tmp_path, maze_lines(0, 1)[0], f"mine,{question},{answer},0")
    with pytest.raises(DataError, match=r"train\.csv, line 3.*" + error):
        list(task.candidates("train", 0))
