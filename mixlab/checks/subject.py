"""The model that checks look at: as configured, without noise, and able to run in float64."""

from collections.abc import Callable
from typing import Any

from mixlab.core.config import Tree, decode, to_tree
from mixlab.nn.language_model import LanguageModelConfig

_REST: dict[str, Callable[[Any], Any]] = {
    # Noise of training: two calls are compared, which must not differ by chance.
    "dropout": lambda value: 0.0,
    "router_noise_std": lambda value: 0.0,
}


def quiet(config: LanguageModelConfig) -> LanguageModelConfig:
    """The same model without dropout and router noise, on kernels that run anywhere."""
    # Kernels know neither a CPU nor float64.
    return decode(LanguageModelConfig, _replace(to_tree(config.portable())))


def _replace(node: Any) -> Any:
    if isinstance(node, list):
        return [_replace(item) for item in node]
    if not isinstance(node, dict):
        return node
    replaced: Tree = {}
    for key, value in node.items():
        is_setting = key in _REST and not isinstance(value, dict | list)
        replaced[key] = _REST[key](value) if is_setting else _replace(value)
    return replaced
