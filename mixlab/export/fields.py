"""A stock config.json, read so that nothing in it is passed over.

Every field is either used, or known to have no effect on what the model computes, or has to have
the value at which it has none. A field that nobody here has heard of is refused by name.
"""

from collections.abc import Mapping
from typing import Any

from mixlab.core.errors import LabError


class ModelFolderError(LabError):
    """A model folder is damaged, or asks for something that mixlab does not have."""


# What a field of this name says changes no logit: names, training, memory, and who wrote the file.
WITHOUT_EFFECT = (
    "_name_or_path", "architectures", "bos_token_id", "dtype", "eos_token_id",
    "initializer_range", "is_llama_config", "model_type", "output_router_logits",
    "pad_token_id", "router_aux_loss_coef", "aux_loss_alpha", "seq_aux",
    "router_jitter_noise", "torch_dtype", "transformers.js_config", "transformers_version",
    "use_cache", "pretraining_tp", "ep_size", "chunk_size_feed_forward", "id2label",
    "label2id", "problem_type", "return_dict", "output_attentions", "output_hidden_states",
    "tokenizer_class",
)  # fmt: skip
CODE = ("auto_map", "custom_pipelines", "trust_remote_code")
_ABSENT = object()


class Fields:
    """The fields of one config.json, each to be asked for once."""

    def __init__(self, where: str, fields: Mapping[str, Any]) -> None:
        self._where, self._left = where, dict(fields)
        for name in CODE:
            if self._left.get(name):
                raise ModelFolderError(
                    f"{where}: {name} = {_short(self._left[name])}: expected no such field. It "
                    "asks for code that comes with the model, and mixlab runs none. Use a "
                    "checkpoint of a stock architecture."
                )
        for name in (*WITHOUT_EFFECT, *CODE):
            self._left.pop(name, None)

    def refuse(self, name: str, value: object, expected: str) -> None:
        """Raise the error about one field."""
        raise ModelFolderError(f"{self._where}: {name} = {_short(value)}: expected {expected}.")

    def take(self, name: str, default: Any = _ABSENT) -> Any:
        """The value of a field, or `default` where it is absent or null."""
        value = self._left.pop(name, None)
        if value is None and default is _ABSENT:
            self.refuse(name, value, "a value")
        return default if value is None else value

    def count(
        self, name: str, default: Any = _ABSENT, *, least: int = 1, most: int | None = None
    ) -> int:
        """A whole number of at least `least`."""
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            self.refuse(name, value, f"a whole number from {least}")
        if most is not None and value > most:
            self.refuse(name, value, f"at most {most}")
        return value

    def number(self, name: str, default: Any = _ABSENT) -> float:
        """A positive number."""
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            self.refuse(name, value, "a positive number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            self.refuse(name, value, "true or false")
        return value

    def layers(self, name: str, n_layers: int, kinds: tuple[str, ...]) -> list[str] | None:
        """One word for every layer, or None where the field is absent."""
        value = self.take(name, None)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != n_layers or not set(value) <= set(kinds):
            self.refuse(name, value, f"{n_layers} of {', '.join(kinds)}")
        return value

    def must(self, name: str, *allowed: Any, why: str) -> None:
        """A field that may be absent, or null, or have one of the values at which it is neutral."""
        value = self._left.pop(name, None)
        if value is None or any(type(value) is type(a) and value == a for a in allowed):
            return
        words = " or ".join(_short(a) for a in allowed) or "no such field"
        self.refuse(name, value, f"{words}, since {why}")

    def finish(self) -> None:
        """To be called at the end: whatever nobody has asked for is refused."""
        for name, value in self._left.items():
            raise ModelFolderError(
                f"{self._where}: {name} = {_short(value)}: mixlab does not know this field, and "
                "passing over it could change what the model computes. Remove it only if it has "
                "no effect."
            )


class Rope:
    """The rotary settings of a config, in the present form or in the older ones."""

    def __init__(
        self, fields: Fields, *, frac_default: float = 1.0, theta_default: float = 10_000.0
    ) -> None:
        given = fields.take("rope_parameters", None)
        legacy = fields.take("rope_scaling", None)
        if legacy is not None and given is None:
            given = legacy
        elif legacy is not None and legacy != given:
            fields.refuse("rope_scaling", legacy, "nothing beside rope_parameters")
        if given is not None and not isinstance(given, dict):
            fields.refuse("rope_parameters", given, "a group of settings")
        inner = dict(given or {})
        kind = inner.pop("rope_type", inner.pop("type", "default"))
        inner.pop("type", None)
        if kind not in ("default", "mrope"):
            fields.refuse(
                "rope_parameters.rope_type", kind,
                "default, since mixlab has no scaled rotary positions",
            )  # fmt: skip
        theta = fields.take("rope_theta", None)
        theta = inner.pop("rope_theta", theta if theta is not None else theta_default)
        frac = fields.take("partial_rotary_factor", None)
        frac = inner.pop("partial_rotary_factor", frac if frac is not None else frac_default)
        # Text has one position per token, so the sections of a picture's three are equal.
        for name in ("mrope_section", "mrope_interleaved"):
            inner.pop(name, None)
        for name, value in inner.items():
            fields.refuse(f"rope_parameters.{name}", value, "no such setting")
        for name, value, most in (("rope_theta", theta, 1e30), ("partial_rotary_factor", frac, 1)):
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0 < value <= most:
                fields.refuse(f"rope_parameters.{name}", value, "a positive number")
        self.theta, self.frac = float(theta), float(frac)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
