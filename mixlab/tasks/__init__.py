"""Reasoning tasks with exact checkers; the kinds that `task.kind` can name."""

from mixlab.core.registry import Registry
from mixlab.tasks.arc_1d import Arc1D
from mixlab.tasks.base import Task
from mixlab.tasks.gym import ReasoningGym
from mixlab.tasks.maze.file import MazeFile
from mixlab.tasks.maze.made import Maze
from mixlab.tasks.recall import Recall
from mixlab.tasks.sudoku.dug import SudokuDug
from mixlab.tasks.sudoku.file import SudokuFile

TASKS: Registry[Task] = Registry(
    {
        "sudoku": SudokuDug,
        "sudoku-file": SudokuFile,
        "maze": Maze,
        "maze-file": MazeFile,
        "arc_1d": Arc1D,
        "reasoning-gym": ReasoningGym,
        "recall": Recall,
    }
)
