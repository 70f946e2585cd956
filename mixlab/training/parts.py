"""Checkpoints of which every rank writes its part, and which anybody reads as a whole.

    model.part1of2.safetensors    the first rank's rows of the sharded tensors, and all others
    model.part2of2.safetensors    the second rank's rows

The manifest names the tensors that are in rows; joined along their first dimension they are what
one process would have saved. So a run goes on with any number of ranks, sharded or not, and every
command reads its checkpoints. `training/sharded_checkpoint.py` writes them.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mixlab.training.manifest import DamagedError

_PART = re.compile(r"([a-z][a-z0-9_]*)\.part(\d+)of(\d+)\.safetensors")


def part_name(group: str, rank: int, n: int) -> str:
    """The file of one rank of `n`."""
    return f"{group}.part{rank + 1}of{n}.safetensors"


class Parts:
    """The files of groups that are in parts, until all are read."""

    def __init__(self, stated: Mapping[str, Any]) -> None:
        self._stated = stated
        self._found: dict[str, dict[int, Mapping[str, Tensor]]] = {group: {} for group in stated}

    def has(self, name: str) -> bool:
        """Whether the file is one of several of its group."""
        return _PART.fullmatch(name) is not None

    def add(self, name: str, members: Mapping[str, Tensor]) -> None:
        """Take in one file."""
        match = _PART.fullmatch(name)
        assert match is not None
        group, number, n = match[1], int(match[2]), int(match[3])
        if group not in self._stated or n != self._stated[group]["n"]:
            raise DamagedError(f"{name} is not a part that checkpoint.json tells of")
        self._found[group][number] = members

    def joined(self) -> dict[str, dict[str, Tensor]]:
        """The groups as one process would have saved them."""
        return {group: self._join(group, table["rows"]) for group, table in self._stated.items()}

    def _join(self, group: str, rows: list[str]) -> dict[str, Tensor]:
        n, found = self._stated[group]["n"], self._found[group]
        missing = [i for i in range(1, n + 1) if i not in found]
        if missing or not n:
            raise DamagedError(f"part {missing[0] if missing else 1} of {group} is missing")
        whole = dict(found[1])
        for name in rows:
            try:
                whole[name] = torch.cat([found[i][name] for i in range(1, n + 1)])
            except (KeyError, RuntimeError) as error:
                raise DamagedError(f"the parts of {group} do not fit: {error}") from None
        return whole
