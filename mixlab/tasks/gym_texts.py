"""Compact texts for tasks of the package reasoning-gym: what is left when the English is taken out.

Each reader turns one entry of the package into a question and its only answer, in characters of a
small alphabet. Tasks with several right answers are left out, so that a strict score is a fair one.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Entry = dict[str, Any]

_DIGITS = "0123456789"
_LOWER = "abcdefghijklmnopqrstuvwxyz"
_BASE_36 = _DIGITS + _LOWER


class Compact(NamedTuple):
    """How one task of the package is written here."""

    characters: str  # of questions and answers together
    read: Callable[[Entry], tuple[str, str]]


def _facts(read: Callable[[dict[str, Any]], tuple[Any, Any]]) -> Callable[[Entry], tuple[str, str]]:
    """A reader of the entry's metadata."""

    def read_entry(entry: Entry) -> tuple[str, str]:
        question, answer = read(entry["metadata"])
        return str(question), str(answer)

    return read_entry


def _expression(entry: Entry) -> tuple[str, str]:
    return entry["metadata"]["expression"].replace(" ", "") + "=", entry["answer"]


def _grid(rows: Sequence[Sequence[int]]) -> str:
    """Rows joined by "/", one character per cell."""
    return "/".join("".join(_BASE_36[int(cell)] for cell in row) for row in rows)


def _pairs(entry: Entry) -> tuple[str, str]:
    facts = entry["metadata"]
    shown = [f"{_grid([p['input']])}>{_grid([p['output']])}/" for p in facts["train_examples"]]
    test = facts["test_example"]
    return "".join(shown) + _grid([test["input"]]) + ">", _grid([test["output"]])


def _life(entry: Entry) -> tuple[str, str]:
    # The board stands in the question only, as its last list of lists.
    board = json.loads(re.search(r"\[\[[01,\s\[\]]*\]\]\.?$", entry["question"])[0].rstrip("."))
    steps = entry["metadata"]["simulation_steps"]
    return f"{steps}:{_grid(board)}", _grid(json.loads(entry["answer"]))


_AB = {"A#": "a", "#A": "A", "B#": "b", "#B": "B"}


def _rewriting(entry: Entry) -> tuple[str, str]:
    program = re.search(r"program:\s+(.*?)\s+Return", entry["question"], re.DOTALL)[1]
    return "".join(_AB[t] for t in program.split()), "".join(
        _AB[t] for t in entry["answer"].split()
    )


TEXTS: dict[str, Compact] = {
    "ab": Compact("aAbB", _rewriting),
    "arc_1d": Compact(_DIGITS + ">/", _pairs),
    "base_conversion": Compact(
        _BASE_36 + ":>",
        _facts(
            lambda m: (
                f"{m['source_repr']}:{m['source_base']}>{m['target_base']}",
                m["target_repr"],
            )
        ),
    ),
    "basic_arithmetic": Compact(_DIGITS + "+-*/().=", _expression),
    "binary_matrix": Compact(
        _BASE_36 + "/", _facts(lambda m: (_grid(m["matrix"]), _grid(m["solution"])))
    ),
    "chain_sum": Compact(_DIGITS + "+-=", _expression),
    "count_bits": Compact(_DIGITS, _facts(lambda m: (m["number"], m["solution"]))),
    "count_primes": Compact(
        _DIGITS + ",", _facts(lambda m: (f"{m['start']},{m['end']}", m["solution"]))
    ),
    "fraction_simplification": Compact(
        _DIGITS + "/",
        _facts(
            lambda m: (
                f"{m['numerator']}/{m['denominator']}",
                f"{m['simplified_numerator']}/{m['simplified_denominator']}",
            )
        ),
    ),
    "game_of_life": Compact(_DIGITS + ":/", _life),
    "gcd": Compact(
        _DIGITS + ",", _facts(lambda m: (",".join(map(str, m["numbers"])), m["result"]))
    ),
    "isomorphic_strings": Compact(
        _LOWER + ",TF",
        _facts(lambda m: (",".join(m["words"]), "T" if m["solution"] else "F")),
    ),
    "largest_island": Compact(_DIGITS + "/", _facts(lambda m: (_grid(m["grid"]), m["solution"]))),
    "lcm": Compact(
        _DIGITS + ",", _facts(lambda m: (",".join(map(str, m["numbers"])), m["result"]))
    ),
    "prime_factorization": Compact(
        _DIGITS + "*", _facts(lambda m: (m["number"], "*".join(map(str, m["factors"]))))
    ),
    "products": Compact(_DIGITS + "*=", _expression),
    "rotate_matrix": Compact(
        _DIGITS + ":/",
        _facts(lambda m: (f"{m['num_rotations']}:{_grid(m['matrix'])}", _grid(m["solution"]))),
    ),
    "rotten_oranges": Compact(
        _DIGITS + "-/", _facts(lambda m: (_grid(m["matrix"]), m["solution"]))
    ),
    "spell_backward": Compact(
        _LOWER, _facts(lambda m: (m["word"].lower(), m["word"].lower()[::-1]))
    ),
    "spiral_matrix": Compact(
        _DIGITS + "/", _facts(lambda m: (_grid(m["matrix"]), _grid([m["solution"]])))
    ),
    "string_insertion": Compact("ABCDE", _facts(lambda m: (m["string"], m["solution"]))),
}
"""The tasks that `reasoning-gym` can name here."""
