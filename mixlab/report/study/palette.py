"""One look per arm, the same in every chart and table: a colour, a dash and a marker.

Seven colours are as many as colour-blind readers tell apart; from the eighth arm on the colours
come again with another dash and another marker. Each colour has a darker form for light paper and
a lighter one for dark paper. After Okabe and Ito, https://jfly.uni-koeln.de/color/.
"""

from typing import NamedTuple

LIGHT = {
    "c0": "#0072b2", "c1": "#d55e00", "c2": "#009e73", "c3": "#b84d8b",
    "c4": "#b88700", "c5": "#3fa7e0", "c6": "#5f5f6b",
    "paper": "#ffffff", "card": "#f6f7f9", "ink": "#1c1e21", "faint": "#6a707a", "grid": "#e3e6ea",
    "good": "#00704f", "bad": "#b3401a", "link": "#0b5fa5",
}  # fmt: skip
DARK = {
    "c0": "#4aa8e8", "c1": "#f08a3c", "c2": "#2cc796", "c3": "#e08fc0",
    "c4": "#e3b93c", "c5": "#a6dbff", "c6": "#a9abb8",
    "paper": "#15181c", "card": "#1d2126", "ink": "#e8eaed", "faint": "#9aa2ad", "grid": "#31373f",
    "good": "#46d6a5", "bad": "#ff9d73", "link": "#7fc1f7",
}  # fmt: skip
N_COLOURS = 7

DASHES: tuple[tuple[float, ...], ...] = ((), (6, 3), (2, 2.5), (8, 2.5, 2, 2.5), (12, 4))
MARKERS = ("circle", "square", "triangle", "diamond", "cross")


class Look(NamedTuple):
    """How one arm is drawn."""

    series: int
    """The number of the arm; charts light up the arm under the pointer by it."""
    colour: str
    dash: tuple[float, ...]
    marker: str


def look(series: int) -> Look:
    """The look of the arm with this number, counted in the order of the study file."""
    turn = series // N_COLOURS
    return Look(
        series,
        f"c{series % N_COLOURS}",
        DASHES[turn % len(DASHES)],
        MARKERS[turn % len(MARKERS)],
    )


INK = Look(-1, "ink", (), "circle")
"""For what belongs to no arm."""
