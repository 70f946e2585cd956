"""How long a run is: updates, tokens, FLOPs or seconds, read from a text such as "2M tokens"."""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from mixlab.core.errors import Rule

Unit = Literal["steps", "tokens", "flops", "seconds"]

_EXAMPLES = (
    'a positive length such as 400, "400 steps", "2M tokens", "1e15 flops", "90 seconds", '
    '"3 minutes" or "1 hour"'
)
_TEXT = re.compile(
    r"\s*(?P<number>\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d{1,3})?)(?P<scale>[kKMBT]?)"
    r"(?:\s*(?P<unit>[a-zA-Z]+))?\s*"
)
_SCALES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_UNITS: dict[str, tuple[Unit, int]] = {
    "step": ("steps", 1),
    "token": ("tokens", 1),
    "flop": ("flops", 1),
    "second": ("seconds", 1),
    "minute": ("seconds", 60),
    "hour": ("seconds", 3600),
    "day": ("seconds", 86400),
}


@dataclass(frozen=True)
class Length:
    """A training budget. In a config it is written, and saved, as one text."""

    amount: int | float  # positive and finite; a whole number for steps and tokens
    unit: Unit

    @classmethod
    def parse(cls, value: object) -> "Length":
        """Read a text or a bare number of steps.

        Raises:
            Rule: it is no positive length in a known unit.
        """
        if isinstance(value, Length):
            return value
        match = _TEXT.fullmatch(str(value)) if _is_text_or_int(value) else None
        word = (match["unit"] or "steps").lower().removesuffix("s") if match else ""
        if match is None or word not in _UNITS:
            raise Rule("", value, _EXAMPLES)
        unit, factor = _UNITS[word]
        amount = float(match["number"].replace("_", "")) * _SCALES[match["scale"]] * factor
        if not 0 < amount < math.inf:
            raise Rule("", value, _EXAMPLES)
        if unit in ("steps", "tokens") and not amount.is_integer():
            raise Rule("", value, f"a whole number of {unit}")
        return cls(int(amount) if amount.is_integer() else amount, unit)

    def __str__(self) -> str:
        """The canonical text, which `parse` turns back into an equal length."""
        number = str(self.amount)
        if self.amount >= 10**15:
            short = f"{self.amount:g}"
            number = short if float(short) == self.amount else repr(float(self.amount))
        if self.unit == "tokens" and isinstance(self.amount, int):
            scale = next((s for s in "TBMK" if self.amount % _SCALES[s] == 0), "")
            number = f"{self.amount // _SCALES[scale]}{scale}"
        return f"{number} {self.unit}"

    def n_steps(
        self, tokens_per_step: int, flops_per_token: float, seconds_per_step: float | None
    ) -> int:
        """The number of updates, at least 1.

        A budget of tokens, FLOPs or seconds is rounded down: apart from the first update, a run
        never spends more than it was given. `seconds_per_step` is a measured time and is needed
        for a length in seconds only.
        """
        if self.unit == "steps":
            return int(self.amount)
        if self.unit == "tokens":
            return max(1, int(self.amount) // tokens_per_step)
        if self.unit == "flops":
            per_step = flops_per_token * tokens_per_step
        else:
            assert seconds_per_step is not None, "a length in seconds needs a measured step"
            per_step = seconds_per_step
        # The margin is for quotients such as 0.3 / 0.1, which fall just short of a whole number.
        return max(1, math.floor(self.amount / per_step * (1 + 1e-9)))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.to_string_ser_schema()
        )


def _is_text_or_int(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)
