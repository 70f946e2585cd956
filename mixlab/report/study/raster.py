"""Scenes side by side as one PNG, for papers and slides. The same numbers give the same bytes."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path as File

from matplotlib import get_data_path
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Polygon
from matplotlib.text import Text
from matplotlib.transforms import Affine2D, Bbox, TransformedBbox

from mixlab.report.panel import png
from mixlab.report.study.palette import LIGHT, Look
from mixlab.report.study.scene import Path, Scene, Shape, Words
from mixlab.report.study.svg import corners

_GAP, _EDGE, _KEY_LINE, _HEADING = 22.0, 18.0, 20.0, 24.0
_SIDES = {"start": "left", "middle": "center", "end": "right"}
_DPI = 100.0
"""Of the layout, which is in pixels of a screen; `png` writes 1.3 pixels for each."""


def write_png(
    scenes: Sequence[Scene], heading: str, key: Sequence[tuple[str, Look]], n_columns: int
) -> bytes:
    """The scenes in rows of `n_columns`, under a heading, with a key of (name, look) below them."""
    n_columns = max(1, min(n_columns, len(scenes)))
    rows = [scenes[i : i + n_columns] for i in range(0, len(scenes), n_columns)]
    width = max(sum(s.width for s in row) + _GAP * (len(row) - 1) for row in rows) + 2 * _EDGE
    heights = [max(scene.height for scene in row) for row in rows]
    key_lines = _key_lines(key, width - 2 * _EDGE)
    height = sum(heights) + _GAP * (len(rows) - 1) + 2 * _EDGE + _KEY_LINE * len(key_lines)
    height += _HEADING
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor=LIGHT["paper"])
    FigureCanvasAgg(figure)
    pen = _Pen(figure, _EDGE, _EDGE, height)
    pen.words(Words(2, 10, heading, 13, "faint"))
    top = _EDGE + _HEADING
    for row, row_height in zip(rows, heights, strict=True):
        left = _EDGE
        for scene in row:
            _add_scene(figure, scene, left, top, height)
            left += scene.width + _GAP
        top += row_height + _GAP
    for number, line in enumerate(key_lines):
        _add_key(figure, line, top - _GAP + _KEY_LINE * (number + 0.7), height)
    return png(figure, compression=2)  # many large panels, and a report should not wait for them


def _key_lines(key: Sequence[tuple[str, Look]], width: float) -> list[list[tuple[str, Look]]]:
    lines: list[list[tuple[str, Look]]] = []
    used = width + 1
    for name, arm_look in key:
        needed = 44 + 7 * len(name)
        if used + needed > width:
            lines.append([])
            used = 0.0
        lines[-1].append((name, arm_look))
        used += needed
    return lines


def _add_key(figure: Figure, line: list[tuple[str, Look]], y: float, height: float) -> None:
    pen = _Pen(figure, _EDGE, 0.0, height)
    x = 0.0
    for name, arm_look in line:
        pen.path(Path([(x, y), (x + 24, y)], arm_look.colour, 2.2, arm_look.dash))
        pen.shape(Shape(x + 12, y, 4, arm_look.colour, arm_look.marker))
        pen.words(Words(x + 30, y + 4, name, 11, "ink"))
        x += 44 + 7 * len(name)


def _add_scene(figure: Figure, scene: Scene, left: float, top: float, height: float) -> None:
    pen = _Pen(figure, left, top, height)
    for path in scene.back:
        pen.path(path)
    frame = (scene.frame[0], scene.frame[1] - 3, scene.frame[2] + 3, scene.frame[3] + 3)
    for path in scene.inside:
        pen.path(path, frame)
    for shape in scene.shapes:
        pen.shape(shape)
    for words in scene.words:
        pen.words(words)


@cache
def _font(is_bold: bool) -> FontProperties:
    """The font that comes with matplotlib, by its file: the same on every machine, and quick."""
    name = "DejaVuSans-Bold.ttf" if is_bold else "DejaVuSans.ttf"
    return FontProperties(fname=File(get_data_path()) / "fonts" / "ttf" / name)


class _Pen:
    """Draws in pixels from (left, top) of a figure; the last drawn is on top."""

    def __init__(self, figure: Figure, left: float, top: float, height: float) -> None:
        self.figure = figure
        # The figure's own pixels grow with the resolution that it is written at.
        to_inches = Affine2D().translate(left, top).scale(1, -1).translate(0, height)
        self.at = to_inches.scale(1 / _DPI) + figure.dpi_scale_trans

    def path(self, path: Path, frame: tuple[float, float, float, float] | None = None) -> None:
        colour = LIGHT[path.colour]
        if path.width:
            dash = (0, [d / path.width for d in path.dash]) if path.dash else "solid"
            artist: Artist = Line2D(
                [x for x, _ in path.points], [y for _, y in path.points], color=colour,
                linewidth=0.72 * path.width, linestyle=dash, alpha=path.opacity, transform=self.at,
            )  # fmt: skip
        else:
            artist = Polygon(
                path.points, closed=True, facecolor=colour, edgecolor="none",
                alpha=path.opacity, transform=self.at,
            )  # fmt: skip
        self._add(artist)
        if frame is not None:
            box = Bbox([[frame[0], frame[1]], [frame[2], frame[3]]])
            artist.set_clip_box(TransformedBbox(box, self.at))

    def shape(self, shape: Shape) -> None:
        colour = LIGHT[shape.colour]
        look = {
            "facecolor": LIGHT["paper"] if shape.hollow else colour,
            "edgecolor": colour, "linewidth": 1.15, "transform": self.at,
        }  # fmt: skip
        if shape.marker == "circle":
            self._add(Circle((shape.x, shape.y), shape.size, **look))
        else:
            self._add(Polygon(corners(shape), closed=True, **look))

    def words(self, words: Words) -> None:
        text = Text(
            words.x, words.y, words.text, color=LIGHT[words.colour],
            fontproperties=_font(words.bold), horizontalalignment=_SIDES[words.anchor],
            verticalalignment="baseline", rotation=90 if words.turned else 0,
            rotation_mode="anchor", parse_math=False, transform=self.at,
        )  # fmt: skip
        text.set_fontsize(0.72 * words.size)
        self._add(text)

    def _add(self, artist: Artist) -> None:
        artist.set_zorder(len(self.figure.get_children()))
        self.figure.add_artist(artist)
