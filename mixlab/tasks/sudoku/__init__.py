"""Sudoku: own puzzles and the user's files."""
