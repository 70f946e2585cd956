"""Mazes: own ones and the user's files."""
