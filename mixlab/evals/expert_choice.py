"""Which tokens each expert takes, and how strongly that depends on the kind of token.

Every token gives k pairs (its class, one of its experts). Over these pairs the mutual information

    I = sum over c, e of  p(c, e) log2( p(c, e) / (p(c) p(e)) )        bits

is what knowing a token's class tells about its expert: 0 if every class is spread over the experts
alike; at most the smaller of H(class) and H(expert) - log2 k, since k experts of a token differ.
Counts of finitely many tokens give more than 0 even without any connection, the more so the more
classes and experts there are. That chance level is measured: classes are dealt to the tokens anew
at random, experts stay, and I is computed again (the classes of a token's k pairs stay together,
which the textbook correction (C - 1)(E - 1) / (2 N ln 2) would ignore).

Shapes: N tokens, C classes, E experts, k experts per token.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mixlab.data.batch import Batch
from mixlab.data.loader import Loader
from mixlab.data.tokenizers.base import Tokenizer
from mixlab.evals.token_classes import CLASSES, token_classes, token_texts
from mixlab.nn.channel_mixers.moe import MoE
from mixlab.nn.evaluating import evaluating
from mixlab.nn.language_model import LanguageModel
from mixlab.ops.packing import Packing

Ints = NDArray[np.int64]

N_SHUFFLES = 19
"""Random dealings of the classes; a measured value above all of them is beyond chance at 1 in 20.
"""
N_TYPICAL = 6
"""Tokens that are named for each expert."""


class Choices(NamedTuple):
    """What every MoE layer chose for the same tokens."""

    tokens: Ints  # (N,)
    experts: dict[str, Ints]  # layer name -> (N, k)
    n_experts: dict[str, int]  # layer name -> E


class Specialisation(NamedTuple):
    """How far the class of a token decides its experts, in bits; see the top of this file."""

    bits: float  # mutual information, as counted
    chance_bits: float  # mean over random dealings of the classes
    chance_high_bits: float  # the highest of them
    most_bits: float  # what these classes and loads allow at most


# --- measuring ----------------------------------------------------------------------------------


@torch.no_grad()
def expert_choices(
    model: LanguageModel, batches: Iterable[Batch], compute_dtype: torch.dtype | None = None
) -> Choices:
    """Run the model over `batches` and note what its routers choose; without router noise."""
    device = model.embed_tokens.weight.device
    routers = {
        f"layer_{i:02d}": block.channel_mixer
        for i, block in enumerate(model.blocks)
        if isinstance(block.channel_mixer, MoE)
    }
    tokens: list[Ints] = []
    found: dict[str, list[Ints]] = {name: [] for name in routers}
    dtype = compute_dtype or torch.bfloat16
    with evaluating(model):
        for batch in batches:
            batch = batch.to(device)
            tokens.append(batch.tokens.flatten().cpu().numpy())
            with torch.autocast(device.type, dtype=dtype, enabled=compute_dtype is not None):
                for name, indices in _routed(model, batch):
                    found[name].append(indices.cpu().numpy())
    return Choices(
        np.concatenate(tokens),
        {name: np.concatenate(parts) for name, parts in found.items()},
        {name: router.cfg.n_experts for name, router in routers.items()},
    )


def _routed(model: LanguageModel, batch: Batch) -> Iterator[tuple[str, torch.Tensor]]:
    """Layer name and chosen experts (N, k) of every MoE layer, first to last.

    Of a layer that is looped, those of the last loop.
    """
    if model.recursion is not None:
        yield from _routed_in_the_last_loop(model, batch)
        return
    x, packing = model.embed(batch.tokens), Packing(batch.segments, batch.prefix)
    for i, block in enumerate(model.blocks):
        x = block.mix_sequence(x, None, packing).y
        if isinstance(block.channel_mixer, MoE):
            yield f"layer_{i:02d}", block.channel_mixer.route(block.channel_norm(x)).indices
        x = block.mix_channels(x).y


def _routed_in_the_last_loop(
    model: LanguageModel, batch: Batch
) -> Iterator[tuple[str, torch.Tensor]]:
    inputs: dict[str, torch.Tensor] = {}
    handles = []
    for i, block in enumerate(model.blocks):
        if isinstance(block.channel_mixer, MoE):

            def keep(_: object, given: tuple[torch.Tensor], name: str = f"layer_{i:02d}") -> None:
                inputs[name] = given[0]

            handles.append(block.channel_mixer.register_forward_pre_hook(keep))
    try:
        model.trunk(batch.tokens, None, Packing(batch.segments, batch.prefix))
    finally:
        for handle in handles:
            handle.remove()
    for i, block in enumerate(model.blocks):
        if isinstance(block.channel_mixer, MoE):
            yield f"layer_{i:02d}", block.channel_mixer.route(inputs[f"layer_{i:02d}"]).indices


def spread_windows(
    loader: Loader, n_windows: int, n_wanted: int, batch_size: int
) -> Iterator[Batch]:
    """About `n_wanted` of the first `n_windows` windows, evenly apart: more documents than in the
    same number of neighbours."""
    stride = max(1, n_windows // max(1, n_wanted))
    rows = [b.rows(slice(1)) for b in loader.window_batches(n_windows, stride)]
    rows = rows[: max(1, n_wanted)]
    for i in range(0, len(rows), batch_size):
        yield Batch.joined(rows[i : i + batch_size])


# --- counting -----------------------------------------------------------------------------------


def count_pairs(classes: Ints, experts: Ints, n_classes: int, n_experts: int) -> Ints:
    """(C, E): how often a token of the class (N,) took the expert, for experts (N, k)."""
    pairs = classes[:, None] * n_experts + experts
    return np.bincount(pairs.ravel(), minlength=n_classes * n_experts).reshape(n_classes, n_experts)


def mutual_information_bits(counts: Ints) -> float:
    """Of row and column of a random count of the (C, E) table."""
    p = counts / max(1, counts.sum())
    even = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
    seen = p > 0
    return max(0.0, float((p[seen] * np.log2(p[seen] / even[seen])).sum()))


def specialisation(
    classes: Ints, experts: Ints, n_classes: int, n_experts: int, seed: int = 0
) -> Specialisation:
    """Mutual information of class (N,) and expert (N, k), with its chance level."""
    g = np.random.default_rng(seed)
    counts = count_pairs(classes, experts, n_classes, n_experts)
    shuffled = [
        mutual_information_bits(count_pairs(g.permutation(classes), experts, n_classes, n_experts))
        for _ in range(N_SHUFFLES)
    ]
    room = _entropy_bits(counts.sum(0)) - np.log2(experts.shape[1])
    return Specialisation(
        bits=mutual_information_bits(counts),
        chance_bits=float(np.mean(shuffled)),
        chance_high_bits=max(shuffled),
        most_bits=max(0.0, float(min(room, _entropy_bits(counts.sum(1))))),
    )


def _entropy_bits(counts: Ints) -> float:
    p = counts[counts > 0] / max(1, counts.sum())
    return float(-(p * np.log2(p)).sum())


def typical_tokens(tokens: Ints, experts: Ints, n_experts: int, n: int) -> list[list[int]]:
    """For each expert the `n` ids that it takes most beyond its share, the foremost first.

    The order is by p(t, e) log( p(t, e) / (p(t) p(e)) ): often, and more often than by chance.
    """
    ids, rows = np.unique(tokens, return_inverse=True)
    found = []
    n_taken = np.bincount(rows)  # (ids,), tokens; every one makes k pairs
    for e in range(n_experts):
        hits = np.bincount(rows[(experts == e).any(axis=1)], minlength=len(ids))
        expected = n_taken * (hits.sum() / max(1, len(tokens)))
        gain = np.where(hits > expected, hits * np.log(np.maximum(hits, 1) / (expected + 1e-9)), 0)
        best = np.argsort(-gain, kind="stable")[:n]
        found.append([int(ids[i]) for i in best if gain[i] > 0])
    return found


# --- the table ----------------------------------------------------------------------------------


def expert_choice(choices: Choices, tokenizer: Tokenizer) -> dict[str, Any]:
    """Plain data for experts.json.

    `classes` and `class_tokens` name the classes and count their tokens; per layer: `counts` (C, E)
    of pairs, the figures of `Specialisation`, and `typical`, the texts of each expert's tokens.
    """
    ids, places = np.unique(choices.tokens, return_inverse=True)
    classes = token_classes(tokenizer, ids.tolist())[places]
    class_tokens = np.bincount(classes, minlength=len(CLASSES))
    layers = {}
    for name, experts in choices.experts.items():
        n_experts = choices.n_experts[name]
        typical = typical_tokens(choices.tokens, experts, n_experts, N_TYPICAL)
        layers[name] = {
            "n_active_experts": experts.shape[1],
            "counts": count_pairs(classes, experts, len(CLASSES), n_experts).tolist(),
            **specialisation(classes, experts, len(CLASSES), n_experts)._asdict(),
            "typical": [_texts(tokenizer, tokens) for tokens in typical],
        }
    return {
        "n_tokens": len(choices.tokens),
        "classes": list(CLASSES),
        "class_tokens": class_tokens.tolist(),
        "layers": layers,
    }


def _texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    texts = token_texts(tokenizer, ids)
    return [
        tokenizer.eos if i == tokenizer.eos_id else text for i, text in zip(ids, texts, strict=True)
    ]
