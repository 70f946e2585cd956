"""A small instruction set, made here: short questions with one right answer each.

For fine-tuning without a download, and for telling whether it worked: every answer can be checked
to the letter. A question is asked once, so a held-out question of facts is another wording of one
that was trained on, while a held-out sum or list of words is new altogether.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from mixlab.data.chat.messages import Message, to_text
from mixlab.data.corpora.base import CorpusConfig
from mixlab.data.documents import Document, SourceReport

GENERATOR_VERSION = 1
"""Goes up whenever the same settings give other examples."""

CAPITALS = {
    "France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Japan": "Tokyo", "Egypt": "Cairo",
    "Kenya": "Nairobi", "Peru": "Lima", "Chile": "Santiago", "Cuba": "Havana", "Greece": "Athens",
    "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Poland": "Warsaw",
    "Austria": "Vienna", "Germany": "Berlin", "Portugal": "Lisbon", "Ireland": "Dublin",
    "China": "Beijing", "Iran": "Tehran", "Iraq": "Baghdad", "Russia": "Moscow",
    "Canada": "Ottawa", "Jordan": "Amman", "Ghana": "Accra", "Nepal": "Kathmandu",
    "Thailand": "Bangkok", "Hungary": "Budapest", "Denmark": "Copenhagen", "Belgium": "Brussels",
}  # fmt: skip
OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("up", "down"), ("left", "right"), ("open", "closed"),
    ("fast", "slow"), ("light", "dark"), ("old", "new"), ("full", "empty"), ("early", "late"),
    ("high", "low"), ("wet", "dry"), ("hard", "soft"), ("true", "false"), ("first", "last"),
    ("start", "end"), ("in", "out"), ("on", "off"), ("more", "less"), ("yes", "no"),
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
WORDS = (
    "file", "name", "list", "code", "line", "text", "time", "data", "test", "path", "key", "value",
    "type", "class", "object", "index", "table", "count", "number", "string", "error", "output",
    "input", "print", "open", "close", "read", "write", "start", "end",
)  # fmt: skip


class Instructions(CorpusConfig):
    """Made questions: facts, opposites, days, sums, comparisons, and small tasks on words."""

    kind: Literal["instructions"] = "instructions"
    has_examples: ClassVar[bool] = True
    n_examples: int = Field(default=6000, ge=100, le=1_000_000)
    """Examples to draw; those drawn twice count once, so somewhat fewer are left."""
    seed: int = Field(default=1, ge=0, lt=2**32)
    """Decides which."""

    def documents(self, report: SourceReport) -> Iterator[Document]:
        report.facts |= {"document": "example", "generator_version": GENERATOR_VERSION}
        for i, (family, question, answer) in enumerate(self._draw()):
            messages = [Message("user", question), Message("assistant", answer)]
            yield Document(f"{family}/{i}", to_text(messages))

    def fingerprint(self) -> dict[str, Any]:
        return {"generator_version": GENERATOR_VERSION}

    def _draw(self) -> Iterator[tuple[str, str, str]]:
        """(family, question, answer): all wordings of the facts, then what is drawn at random."""
        g = random.Random(self.seed)
        facts = list(_facts())
        g.shuffle(facts)
        yield from facts[: self.n_examples]
        for _ in range(self.n_examples - len(facts)):
            family = g.choice(tuple(DRAWN))
            yield (family, *DRAWN[family](g))


def _facts() -> Iterator[tuple[str, str, str]]:
    for country, city in CAPITALS.items():
        for question in (
            f"What is the capital of {country}?", f"Name the capital of {country}.",
            f"Which city is the capital of {country}?", f"Tell me the capital of {country}.",
            f"{country}: what is its capital?",
        ):  # fmt: skip
            yield "capital", question, city
        yield "capital", f"{city} is the capital of which country?", country
        yield "capital", f"Which country has the capital {city}?", country
    for pair in OPPOSITES:
        for word, other in (pair, pair[::-1]):
            for question in (
                f"What is the opposite of {word}?", f"Name the opposite of {word}.",
                f"Give me the opposite of {word}.", f"{word}: what is the opposite?",
            ):  # fmt: skip
                yield "opposite", question, other
    for i, day in enumerate(DAYS):
        after, before = DAYS[(i + 1) % 7], DAYS[i - 1]
        yield "day", f"Which day comes after {day}?", after
        yield "day", f"What day follows {day}?", after
        yield "day", f"Name the day after {day}.", after
        yield "day", f"Which day comes before {day}?", before
        yield "day", f"Name the day before {day}.", before


def _sum(g: random.Random) -> tuple[str, str]:
    a, b = g.randint(0, 20), g.randint(0, 20)
    question = g.choice(("What is {} + {}?", "Add {} and {}.", "{} plus {} is what?"))
    return question.format(a, b), str(a + b)


def _larger(g: random.Random) -> tuple[str, str]:
    a, b = g.sample(range(100), 2)
    question = g.choice(("Which is larger, {} or {}?", "Name the larger number: {} or {}."))
    return question.format(a, b), str(max(a, b))


def _words(g: random.Random, fewest: int, most: int) -> list[str]:
    return [g.choice(WORDS) for _ in range(g.randint(fewest, most))]


def _copy(g: random.Random) -> tuple[str, str]:
    text = " ".join(_words(g, 1, 4))
    return g.choice(("Repeat: {}", "Copy this: {}")).format(text), text


def _reverse(g: random.Random) -> tuple[str, str]:
    words = _words(g, 2, 3)
    return f"Reverse the words: {' '.join(words)}", " ".join(words[::-1])


def _first(g: random.Random) -> tuple[str, str]:
    words = _words(g, 2, 5)
    return f"What is the first word? {' '.join(words)}", words[0]


def _last(g: random.Random) -> tuple[str, str]:
    words = _words(g, 2, 5)
    return f"What is the last word? {' '.join(words)}", words[-1]


def _count(g: random.Random) -> tuple[str, str]:
    words = _words(g, 1, 6)
    return f"How many words? {' '.join(words)}", str(len(words))


DRAWN: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "sum": _sum,
    "larger": _larger,
    "copy": _copy,
    "reverse": _reverse,
    "first": _first,
    "last": _last,
    "count": _count,
}
"""Families whose questions are drawn, by name."""
