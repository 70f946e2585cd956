"""One look per arm, the same in every chart and table: a colour, a dash and a marker.

Seven colours, chosen by search so that any two stay apart for every kind of colour blindness; from
the eighth arm on they come again with another dash and another marker. Light and dark paper have
their own seven.
"""

from typing import NamedTuple

LIGHT = {
    "c0": "#00508d", "c1": "#ff6100", "c2": "#05ad66", "c3": "#d06396",
    "c4": "#753f08", "c5": "#3279ff", "c6": "#4b494d",
    "paper": "#ffffff", "card": "#f6f7f9", "ink": "#1c1e21", "faint": "#6a707a", "grid": "#e3e6ea",
    "good": "#00704f", "bad": "#b3401a", "link": "#0b5fa5",
}  # fmt: skip
DARK = {
    "c0": "#3f78ff", "c1": "#e4630f", "c2": "#37d88b", "c3": "#c85dbe",
    "c4": "#e1e94c", "c5": "#bfddff", "c6": "#808080",
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
