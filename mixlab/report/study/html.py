"""HTML elements from names and texts; a text that is not marked as HTML is escaped."""

from collections.abc import Iterable, Sequence
from html import escape

from mixlab.report.markup import printable


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


Content = str | None


def join(parts: Iterable[Content], between: str = "") -> Html:
    """Parts as one piece of markup; what is no Html is escaped, and None and "" are left out."""
    return Html(between.join(_markup(part) for part in parts if part))


def tag(name: str, *content: Content, **attributes: str | bool | None) -> Html:
    """An element. `class_` and the like lose their underscore, `data_label` becomes data-label."""
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{name}{written}>{join(content)}</{name}>")


def link(text: Content, href: str, **attributes: str | None) -> Html:
    """A link; without an address, the text alone."""
    return tag("a", text, href=href, **attributes) if href else Html(_markup(text or ""))


class Column:
    """The head of a column: its words, whether its cells are numbers, and what it means."""

    def __init__(
        self, head: Content, is_number: bool = False, title: str = "", is_wide: bool = False
    ) -> None:
        self.head, self.is_number, self.title, self.is_wide = head, is_number, title, is_wide

    @property
    def cell_class(self) -> str | None:
        """A wide cell takes the whole width of its card on a phone."""
        return (
            " ".join(c for c, on in (("n", self.is_number), ("wide", self.is_wide)) if on) or None
        )


def table(columns: Sequence[Column], rows: Sequence[Sequence[Content]], class_: str = "") -> Html:
    """A table that becomes one card per row on a phone; the first cell heads its row."""
    heads = [
        tag("th", c.head, class_="n" if c.is_number else None, title=c.title or None, scope="col")
        for c in columns
    ]
    body = []
    for row in rows:
        cells = [tag("th", row[0], scope="row")]
        for column, cell in zip(columns[1:], row[1:], strict=True):
            cells.append(tag("td", cell, class_=column.cell_class, data_label=column.head or ""))
        body.append(tag("tr", *cells))
    return tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *body), class_=class_ or None)


def _markup(part: str) -> str:
    return part if isinstance(part, Html) else escape(printable(part))
