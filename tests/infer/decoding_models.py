"""Small models of every kind for the tests of decoding."""

import torch

from mixlab.core.config import to_tree
from mixlab.core.recipes import list_recipes
from mixlab.jobs.smoke import load_shrunk
from mixlab.nn.language_model import LanguageModel, LanguageModelConfig, build_model
from mixlab.nn.recursion.loop_pass import Loops


def shrunk_models() -> dict[str, LanguageModelConfig]:
    """The models of all recipes for text, shrunk; of equal ones the first."""
    found: dict[str, LanguageModelConfig] = {}
    for info in list_recipes():
        config = load_shrunk(info.name)
        if config.kind == "language_model" and config.model not in found.values():
            found[info.name] = config.model
    return found


def roughened(cfg: LanguageModelConfig, dtype: torch.dtype = torch.float64) -> LanguageModel:
    """No tensor at its initial value, which might hide that it is not used; logits far apart."""
    model = build_model(cfg, 1).to(dtype).eval()
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=g, dtype=torch.float64)
    return model


def small(mixer: dict, channel: dict | None = None, **settings) -> LanguageModelConfig:
    """Two layers of one block."""
    block = {"sequence_mixer": mixer, "channel_mixer": channel or {"kind": "mlp", "d_ff": 24}}
    tree = {"vocab_size": 29, "d_model": 16, "n_layers": 2, "max_seq_len": 64} | settings
    return LanguageModelConfig(**tree, blocks={"only": block})


def with_mixer(cfg: LanguageModelConfig, **change) -> LanguageModelConfig:
    """The same with other settings of the sequence mixers."""
    tree = to_tree(cfg)
    for block in tree["blocks"].values():
        block["sequence_mixer"] |= change
    return LanguageModelConfig(**tree)


def loops_of(model: LanguageModel) -> Loops | None:
    """What decoding uses where nothing else is asked for."""
    return None if model.recursion is None else Loops(may_exit=True)


@torch.no_grad()
def logits_after(
    model: LanguageModel, tokens: list[int], loops: Loops | None = None
) -> torch.Tensor:
    """(V,) by one call over the whole text, without any state."""
    loops = None if model.recursion is None else loops or loops_of(model)
    return model(torch.tensor([tokens]), last_only=True, loops=loops).logits[0, -1]
