"""A table of named config classes, written out by hand."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Generic, TypeVar, Union

from pydantic import Discriminator

C = TypeVar("C")


class Registry(Generic[C]):
    """The named choices for one `kind:` field of the config.

    A literal table rather than a decorator: which names exist must not depend on which files
    happen to have been imported, and a table can be read, searched and diffed. Every class in it
    has a field `kind: Literal[<its name>]`.
    """

    def __init__(self, table: Mapping[str, type[C]]) -> None:
        self._table = dict(table)
        for name, cls in self._table.items():
            kind = cls.model_fields["kind"].default  # type: ignore[attr-defined]
            assert kind == name, f"{cls.__name__}.kind is {kind!r}, its entry says {name!r}"

    def __getitem__(self, name: str) -> type[C]:
        return self._table[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def annotation(self) -> Any:
        """The pydantic type of a field that takes any entry, chosen by its `kind`."""
        return Annotated[Union[tuple(self._table.values())], Discriminator("kind")]  # noqa: UP007
