"""A scene as inline SVG, coloured by the page's theme; the same numbers give the same bytes."""

import math
from collections.abc import Sequence
from html import escape

from mixlab.report.study.scene import Link, Path, Scene, Shape, Words


def write_svg(scene: Scene) -> str:
    """The `<svg>` element. It shrinks with the page and never grows beyond its own size."""
    left, top, right, bottom = scene.frame
    clip = f"clip-{scene.name}"
    parts = [
        f'<svg viewBox="0 0 {_n(scene.width)} {_n(scene.height)}" '
        f'style="max-width:{_n(scene.width)}px" role="img" aria-label="{escape(scene.says)}">',
        f'<clipPath id="{clip}"><rect x="{_n(left)}" y="{_n(top - 3)}" '
        f'width="{_n(right - left + 3)}" height="{_n(bottom - top + 6)}"/></clipPath>',
        *(_path(path) for path in scene.back),
        f'<g clip-path="url(#{clip})">',
        *(_path(path) for path in scene.inside),
        "</g>",
        *(_shape(shape) for shape in scene.shapes),
        *(_words(words) for words in scene.words),
        "</svg>",
    ]
    return "\n".join(parts)


def marker_svg(marker: str, colour: str, dash: Sequence[float]) -> str:
    """The swatch of an arm in keys and tables: a bit of its line with its marker."""
    line = Path([(1, 7), (25, 7)], colour, 2.2, tuple(dash))
    shape = Shape(13, 7, 4, colour, marker)
    return (
        '<svg class="swatch" width="26" height="14" viewBox="0 0 26 14" aria-hidden="true">'
        f"{_path(line)}{_shape(shape)}</svg>"
    )


def _path(path: Path) -> str:
    points = " ".join(f"{_n(x)},{_n(y)}" for x, y in path.points)
    if path.width:
        look = f'fill="none" stroke="var(--{path.colour})" stroke-width="{_n(path.width)}"'
        if path.dash:
            look += f' stroke-dasharray="{" ".join(_n(d) for d in path.dash)}"'
        name = "polyline"
    else:
        look, name = f'fill="var(--{path.colour})"', "polygon"
    if path.opacity != 1:
        look += f' opacity="{_n(path.opacity)}"'
    return _linked(f'<{name} points="{points}" {look}', f"</{name}>", path.link)


def _shape(shape: Shape) -> str:
    fill = "var(--paper)" if shape.hollow else f"var(--{shape.colour})"
    look = f'fill="{fill}" stroke="var(--{shape.colour})" stroke-width="1.6"'
    if shape.marker == "circle":
        start = f'<circle cx="{_n(shape.x)}" cy="{_n(shape.y)}" r="{_n(shape.size)}" {look}'
        return _linked(start, "</circle>", shape.link)
    points = " ".join(f"{_n(x)},{_n(y)}" for x, y in corners(shape))
    return _linked(f'<polygon points="{points}" {look}', "</polygon>", shape.link)


def corners(shape: Shape) -> list[tuple[float, float]]:
    """The outline of a marker other than a circle."""
    x, y, r = shape.x, shape.y, shape.size
    if shape.marker == "square":
        r *= 0.9
        return [(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)]
    if shape.marker == "triangle":
        return [(x, y - 1.2 * r), (x + 1.1 * r, y + 0.8 * r), (x - 1.1 * r, y + 0.8 * r)]
    if shape.marker == "diamond":
        return [(x, y - 1.3 * r), (x + 1.3 * r, y), (x, y + 1.3 * r), (x - 1.3 * r, y)]
    a, b = 1.2 * r, 0.4 * r  # a cross
    turn = math.sqrt(0.5)
    cross = [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a), (-b, b),
             (-a, b), (-a, -b), (-b, -b)]  # fmt: skip
    return [(x + turn * (p - q), y + turn * (p + q)) for p, q in cross]


def _words(words: Words) -> str:
    look = f'font-size="{_n(words.size)}" fill="var(--{words.colour})"'
    if words.anchor != "start":
        look += f' text-anchor="{words.anchor}"'
    if words.bold:
        look += ' font-weight="600"'
    place = f'x="{_n(words.x)}" y="{_n(words.y)}"'
    if words.turned:
        place += f' transform="rotate(-90 {_n(words.x)} {_n(words.y)})"'
    return _linked(f"<text {place} {look}", f"{escape(words.text)}</text>", words.link)


def _linked(start: str, end: str, link: Link) -> str:
    """The element with its series as a class, its title, and a link around it."""
    if link.series >= 0:
        start += f' class="s s{link.series}"'
    title = f"<title>{escape(link.title)}</title>" if link.title else ""
    has_content = bool(title) or not end.startswith("</")
    element = f"{start}>{title}{end}" if has_content else f"{start}/>"
    return f'<a href="{escape(link.href)}">{element}</a>' if link.href else element


def _n(value: float) -> str:
    """Hundredths of a pixel, without needless zeros."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text
