"""YAML files that come with the package, known by their names, and files of the user's own."""

import re
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from mixlab.core.config import Tree, parse_yaml, read_yaml
from mixlab.core.errors import LabError
from mixlab.core.nearest import did_you_mean


@dataclass(frozen=True)
class Packaged:
    """All packaged files of one sort."""

    what: str
    """One of them, in messages: "recipe"."""
    place: str
    """Their folder inside the package."""

    @property
    def _folder(self) -> Traversable:
        return files("mixlab").joinpath(*self.place.split("/"))

    def names(self) -> list[str]:
        """In the order of the alphabet; none if there is no such folder."""
        if not self._folder.is_dir():
            return []
        found = (file.name for file in self._folder.iterdir())
        return sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml"))

    def read(self, name: str) -> Tree:
        """The tree of a packaged file."""
        text = (self._folder / f"{name}.yaml").read_text(encoding="utf-8")
        return parse_yaml(text, f"{self.what} {name}")

    def find(self, name_or_file: str) -> tuple[Tree, Path | None]:
        """A tree with its name filled in, and the user's file it is from; None: a packaged one.

        Raises:
            LabError: no such name or file, or the file is no YAML mapping.
        """
        names = self.names()
        if name_or_file in names:
            return {"name": name_or_file, **self.read(name_or_file)}, None
        path, one_of = Path(name_or_file), f"one of {', '.join(names)}"
        if not (path.suffix in (".yaml", ".yml") or path.exists() or path.parent.name):
            hint = did_you_mean(name_or_file, names)
            raise LabError(
                f"{self.what} = {name_or_file!r}: expected {one_of}, or a YAML file.{hint}"
            )
        if path.is_dir():
            raise LabError(f"{path} is a folder; a {self.what} is a YAML file or {one_of}.")
        # The name becomes that of a folder.
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or self.what
        return {"name": stem, **read_yaml(path)}, path
