"""Our models beside transformers' stock classes: names, weights, and how the two are compared."""

import re

import torch
from torch import Tensor
from transformers import DynamicCache

from mixlab.export import TARGETS
from mixlab.export.moves import Move, to_ours, to_stock
from mixlab.nn.language_model import LanguageModel, LanguageModelConfig, build_model

EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def moves_of(ours: LanguageModel, stock: torch.nn.Module) -> list[Move]:
    """How the weights go, as exports and imports have it."""
    return TARGETS[stock.config.model_type].moves(ours.cfg)


def stacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors as the classes hold them, which keep all experts in two tensors."""
    out, parts = {}, {}
    for name, tensor in tensors.items():
        match = EXPERT.fullmatch(name)
        if match is None:
            out[name] = tensor
        else:
            parts.setdefault(match[1], {})[int(match[2]), match[3]] = tensor
    for where, found in parts.items():
        n = 1 + max(e for e, _ in found)
        up = [torch.cat([found[e, "gate"], found[e, "up"]]) for e in range(n)]
        out[f"{where}.gate_up_proj"] = torch.stack(up)
        out[f"{where}.down_proj"] = torch.stack([found[e, "down"] for e in range(n)])
    return out


def unstacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `stacked`."""
    out = {}
    for name, tensor in tensors.items():
        where, _, leaf = name.rpartition(".")
        if not where.endswith(".experts"):
            out[name] = tensor
            continue
        for e, matrix in enumerate(tensor):
            names = ["gate", "up"] if leaf == "gate_up_proj" else ["down"]
            for which, part in zip(names, matrix.chunk(len(names)), strict=True):
                out[f"{where}.{e}.{which}_proj.weight"] = part
    return out


def our_gradients(ours: LanguageModel, stock: torch.nn.Module) -> dict[str, Tensor]:
    """The stock model's gradients by our names.

    The way of the weights is linear but for a constant, which a gradient does not have.
    """
    moves = moves_of(ours, stock)
    tensors = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in stock.named_parameters()
    }
    buffers = {n: torch.zeros_like(t) for n, t in stock.state_dict().items() if n not in tensors}
    given = {n: t.double() for n, t in unstacked(tensors | buffers).items()}
    moved, origin = to_ours(given, moves), to_ours({n: 0 * t for n, t in given.items()}, moves)
    return {name: (moved[name] - origin[name]).float() for name, _ in ours.named_parameters()}


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
    weights = stacked(to_stock(ours.state_dict(), moves_of(ours, stock)))
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
    theirs = our_gradients(ours, stock)
    for name, parameter in ours.named_parameters():
        assert theirs[name].any(), f"{name} has no gradient to compare"
        assert_near(parameter.grad, theirs[name], f"gradient of {name}")


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
