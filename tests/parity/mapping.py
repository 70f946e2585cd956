"""Our models beside transformers' stock classes: names, weights, and how the two are compared."""

import re

import torch
from torch import Tensor
from transformers import DynamicCache

from mixlab.nn.language_model import LanguageModel, LanguageModelConfig, build_model

# Leaves have the stock names already; only the modules around them are called differently.
RENAMED = (
    (r"^embed_tokens\.", "model.embed_tokens."),
    (r"^norm\.", "model.norm."),
    (r"^blocks\.(\d+)\.sequence_norm\.", r"model.layers.\1.input_layernorm."),
    (r"^blocks\.(\d+)\.sequence_mixer\.", r"model.layers.\1.self_attn."),
    (r"^blocks\.(\d+)\.channel_norm\.", r"model.layers.\1.post_attention_layernorm."),
    (r"^blocks\.(\d+)\.channel_mixer\.", r"model.layers.\1.mlp."),
)


def stock_name(name: str) -> str:
    """The stock name of one of our parameters or buffers."""
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def build_pair(tree: dict, stock_class, stock_config) -> tuple[LanguageModel, torch.nn.Module]:
    """Both models in float32 with the same random weights, no tensor left at its initial value."""
    ours = build_model(LanguageModelConfig(**tree), seed=0).eval()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*ours.parameters(), *persistent_buffers(ours)):
            tensor += 0.1 * torch.randn(tensor.shape, generator=g)
    stock_config._attn_implementation = "eager"
    stock_config._experts_implementation = "eager"
    stock = stock_class(stock_config).eval()
    weights = {stock_name(name): tensor for name, tensor in ours.state_dict().items()}
    missing, unexpected = stock.load_state_dict(weights, strict=False)
    tied = {"lm_head.weight"} if tree.get("tie_embeddings", True) else set()
    assert set(missing) == tied and not unexpected, (missing, unexpected)
    return ours, stock


def persistent_buffers(model: torch.nn.Module) -> list[Tensor]:
    kept = model.state_dict()
    return [buffer for name, buffer in model.named_buffers() if name in kept]


def assert_near(got: Tensor, want: Tensor, what: str) -> None:
    """Float32 sums in another order: 1e-5 of the largest entry."""
    scale = want.abs().max().item()
    error = (got - want).abs().max().item()
    assert error <= 1e-5 * scale, f"{what}: off by {error:.1e}, with entries up to {scale:.1e}"


def tokens(vocab_size: int, length: int) -> Tensor:
    return torch.randint(0, vocab_size, (2, length), generator=torch.Generator().manual_seed(2))


def compare_forward_and_gradients(ours: LanguageModel, stock: torch.nn.Module, length: int) -> None:
    """Logits, and the gradient of every parameter; the embedding's carries that of the input."""
    inputs = tokens(ours.cfg.vocab_size, length)
    got, want = ours(inputs).logits, stock(input_ids=inputs, use_cache=False).logits
    assert_near(got, want, "logits")
    direction = torch.randn(want.shape, generator=torch.Generator().manual_seed(3))
    (got * direction).sum().backward()
    (want * direction).sum().backward()
    theirs = dict(stock.named_parameters())
    names = [name for name, _ in ours.named_parameters()]
    assert {stock_name(name) for name in names} == set(theirs), "some parameter has no counterpart"
    for name, parameter in ours.named_parameters():
        reference = theirs[stock_name(name)].grad
        assert reference.any(), f"{name} has no gradient to compare"
        assert_near(parameter.grad, reference, f"gradient of {name}")


@torch.no_grad()
def compare_decoding(ours: LanguageModel, stock: torch.nn.Module, pieces: list[int]) -> None:
    """Logits of every piece, each model going on from its own cache."""
    inputs = tokens(ours.cfg.vocab_size, sum(pieces))
    state, cache = ours.initial_state(2), DynamicCache(config=stock.config)
    for i, piece in enumerate(inputs.split(pieces, dim=1)):
        out = ours(piece, state)
        state = out.state
        want = stock(input_ids=piece, past_key_values=cache, use_cache=True).logits
        assert_near(out.logits, want, f"logits of piece {i}")
