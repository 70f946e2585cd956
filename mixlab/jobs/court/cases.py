"""The trials that a config calls for: one for every use of an op whose backend is left open."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from mixlab.jobs.config import AnyRunConfig, RunConfig
from mixlab.jobs.court.trial import Case, Inputs
from mixlab.jobs.court.verdicts import Dims
from mixlab.jobs.device import Hardware
from mixlab.nn.channel_mixers.moe import MoEConfig
from mixlab.nn.sequence_mixers.attention import AttentionConfig
from mixlab.nn.sequence_mixers.gated_deltanet import GatedDeltaNetConfig
from mixlab.nn.sequence_mixers.mla import MLAConfig
from mixlab.ops import attention, causal_conv, cross_entropy, gated_delta_rule, moe
from mixlab.ops.packing import Packing

DOCUMENTS = 3
"""Documents of a row in a trial, on average."""


def cases_of(config: AnyRunConfig, hardware: Hardware) -> list[Case]:
    """Each once, however many layers use it; none where there is nothing to choose from."""
    if not isinstance(config, RunConfig):
        return []
    found: dict[tuple[str, str], Case] = {}
    for case in _all_cases(config, hardware):
        if len(case.candidates) > 1:
            found.setdefault((case.op, str(dict(case.dims))), case)
    return list(found.values())


def _all_cases(config: RunConfig, hardware: Hardware) -> Iterator[Case]:
    device, dtype = hardware.device, hardware.compute_dtype or torch.float32
    share = len(hardware.world.share(config.train.batch_size))
    size = (dtype, config.train.micro_batch_size or share, config.data.seq_len)
    reads_both_ways = config.data.chat is not None and config.data.chat.prefix_lm
    d_model = config.model.d_model
    for block in config.model.blocks.values():
        mixer, channels = block.sequence_mixer, block.channel_mixer
        if isinstance(mixer, GatedDeltaNetConfig):
            if mixer.conv_size and mixer.conv_backend == "auto":
                yield _conv_case(mixer, size, device)
            if mixer.backend == "auto":
                yield _delta_rule_case(mixer, size, device)
        is_attention = isinstance(mixer, AttentionConfig | MLAConfig)
        if is_attention and mixer.backend == "auto" and not reads_both_ways:
            yield _attention_case(mixer, size, device)
        if isinstance(channels, MoEConfig) and channels.backend == "auto":
            yield _experts_case(channels, d_model, size, device)
    yield _loss_case(config.model.vocab_size, d_model, size, device)


Size = tuple[torch.dtype, int, int]  # of activations; rows and tokens of one forward pass


# --- the short convolution ------------------------------------------------------------------------


def conv_dims(cfg: GatedDeltaNetConfig) -> Dims:
    """What tells one convolution from another."""
    return {"n_channels": cfg.conv_channels, "conv_size": cfg.conv_size}


def _conv_case(cfg: GatedDeltaNetConfig, size: Size, device: torch.device) -> Case:
    dtype, n_channels = size[0], cfg.conv_channels
    qk_width = cfg.n_heads * cfg.head_dim
    widths = (qk_width, qk_width, cfg.v_heads * cfg.v_dim)

    def make(n_rows: int, n_tokens: int, g: torch.Generator) -> Inputs:
        x = _normal((n_rows, n_tokens, n_channels), g).to(dtype)
        weight = _normal((n_channels, cfg.conv_size), g) * cfg.conv_size**-0.5
        return Inputs({"x": x, "weight": weight}, _documents(n_rows, n_tokens, g))

    def run(inputs: Inputs, backend: str) -> tuple[Tensor, ...]:
        parts, _ = causal_conv.causal_conv_parts(
            **inputs.leaves, widths=widths, packing=inputs.packing, backend=backend
        )
        return tuple(parts)

    usable = causal_conv.usable_backends(device, dtype, cfg.conv_size)
    return Case("causal_conv", conv_dims(cfg), *size, tuple(usable), "reference", make, run)


# --- the gated delta rule -------------------------------------------------------------------------


def delta_rule_dims(cfg: GatedDeltaNetConfig) -> Dims:
    """What tells one delta rule from another."""
    return {
        "n_heads": cfg.n_heads, "n_v_heads": cfg.v_heads, "head_dim": cfg.head_dim,
        "v_head_dim": cfg.v_dim, "b_max": _b_max(cfg),
    }  # fmt: skip


def _b_max(cfg: GatedDeltaNetConfig) -> int:
    return 2 if cfg.allow_neg_eigval else 1


def _delta_rule_case(cfg: GatedDeltaNetConfig, size: Size, device: torch.device) -> Case:
    dtype, b_max = size[0], _b_max(cfg)

    def make(n_rows: int, n_tokens: int, g: torch.Generator) -> Inputs:
        rows = (n_rows, n_tokens)
        leaves = {
            "q": _normal((*rows, cfg.n_heads, cfg.head_dim), g).to(dtype),
            "k": _normal((*rows, cfg.n_heads, cfg.head_dim), g).to(dtype),
            "v": _normal((*rows, cfg.v_heads, cfg.v_dim), g).to(dtype),
            # Most decays are slow, so that states reach over many chunks.
            "log_a": -_uniform((*rows, cfg.v_heads), g).pow(4),
            "b": b_max * _uniform((*rows, cfg.v_heads), g),
        }
        return Inputs(leaves, _documents(n_rows, n_tokens, g))

    def run(inputs: Inputs, backend: str) -> tuple[Tensor, ...]:
        return (
            gated_delta_rule.gated_delta_rule(
                **inputs.leaves, state=None, packing=inputs.packing, normalize_qk=True,
                final_state=False, backend=backend,
            ).o,
        )  # fmt: skip

    usable = ["chunked"]  # float32 is not left to kernels that round to tf32
    if dtype in (torch.bfloat16, torch.float16):
        usable = gated_delta_rule.usable_backends(
            device, dtype, k_dim=cfg.head_dim, v_dim=cfg.v_dim, b_max=b_max
        )
    dims = delta_rule_dims(cfg)
    return Case(
        "gated_delta_rule", dims, *size, tuple(usable), "recurrent", make, run,
        slow=() if _has_tilelang_cache() else ("flash_qla",),
    )  # fmt: skip


def _has_tilelang_cache() -> bool:
    """Whether FlashQLA's kernels, or others of TileLang, have been compiled here before."""
    path = os.environ.get("TILELANG_CACHE_DIR") or Path.home() / ".tilelang" / "cache"
    return Path(path).exists()


# --- attention ------------------------------------------------------------------------------------


def attention_dims(cfg: AttentionConfig | MLAConfig) -> Dims:
    """What tells one attention from another."""
    if isinstance(cfg, MLAConfig):
        n_kv_heads, k_dim, v_dim, window = cfg.n_heads, cfg.qk_head_dim, cfg.v_head_dim, None
    else:
        n_kv_heads, k_dim, v_dim, window = cfg.kv_heads, cfg.head_dim, cfg.head_dim, cfg.window
    return {
        "n_heads": cfg.n_heads, "n_kv_heads": n_kv_heads, "head_dim": k_dim, "v_head_dim": v_dim,
        "window": window or 0,
    }  # fmt: skip


def _attention_case(cfg: AttentionConfig | MLAConfig, size: Size, device: torch.device) -> Case:
    dtype, dims = size[0], attention_dims(cfg)
    window = int(dims["window"]) or None
    k_dim, v_dim = int(dims["head_dim"]), int(dims["v_head_dim"])

    def make(n_rows: int, n_tokens: int, g: torch.Generator) -> Inputs:
        rows = (n_rows, n_tokens)
        leaves = {
            "q": _normal((*rows, cfg.n_heads, k_dim), g).to(dtype),
            "k": _normal((*rows, int(dims["n_kv_heads"]), k_dim), g).to(dtype),
            "v": _normal((*rows, int(dims["n_kv_heads"]), v_dim), g).to(dtype),
        }
        return Inputs(leaves, _documents(n_rows, n_tokens, g))

    def run(inputs: Inputs, backend: str) -> tuple[Tensor, ...]:
        return (
            attention.attention(
                **inputs.leaves, scale=k_dim**-0.5, window=window, packing=inputs.packing,
                backend=backend,
            ),
        )  # fmt: skip

    usable = attention.usable_backends(device, dtype, k_dim=k_dim, v_dim=v_dim)
    return Case("attention", dims, *size, tuple(usable), "reference", make, run)


# --- experts --------------------------------------------------------------------------------------


def experts_dims(cfg: MoEConfig, d_model: int) -> Dims:
    """What tells one set of experts from another."""
    return {
        "n_experts": cfg.n_experts, "n_active_experts": cfg.n_active_experts,
        "d_expert": cfg.d_expert, "d_model": d_model, "activation": cfg.activation,
    }  # fmt: skip


def _experts_case(cfg: MoEConfig, d_model: int, size: Size, device: torch.device) -> Case:
    dtype, width = size[0], cfg.d_expert
    up_rows = 2 * width if cfg.activation == "swiglu" else width

    def make(n_rows: int, n_tokens: int, g: torch.Generator) -> Inputs:
        n = n_rows * n_tokens
        leaves = {
            "x": _normal((n, d_model), g).to(dtype),
            "weights": _uniform((n, cfg.n_active_experts), g),
            "up": (_normal((cfg.n_experts, up_rows, d_model), g) * d_model**-0.5).to(dtype),
            "down": (_normal((cfg.n_experts, d_model, width), g) * width**-0.5).to(dtype),
        }
        indices = _uniform((n, cfg.n_experts), g).topk(cfg.n_active_experts).indices
        return Inputs(leaves, given={"indices": indices})

    def run(inputs: Inputs, backend: str) -> tuple[Tensor, ...]:
        assert inputs.given is not None
        y = moe.experts(**inputs.leaves, **inputs.given, activation=cfg.activation, backend=backend)
        return (y,)

    usable = moe.usable_backends(device, dtype, (d_model, up_rows, width))
    if device.type == "cpu":  # where both are plain PyTorch
        usable = usable[:1]
    dims = experts_dims(cfg, d_model)
    return Case("experts", dims, *size, tuple(usable), "loop", make, run)


# --- the loss -------------------------------------------------------------------------------------


def loss_dims(vocab_size: int, d_model: int) -> Dims:
    """What tells one head from another."""
    return {"vocab_size": vocab_size, "d_model": d_model}


def _loss_case(vocab_size: int, d_model: int, size: Size, device: torch.device) -> Case:
    dtype = size[0]

    def make(n_rows: int, n_tokens: int, g: torch.Generator) -> Inputs:
        n = n_rows * n_tokens
        h = _normal((n, d_model), g).to(dtype)
        weight = _normal((vocab_size, d_model), g) * d_model**-0.5
        targets = torch.randint(vocab_size, (n,), generator=g, device=g.device)
        targets[:: n // DOCUMENTS or 1] = cross_entropy.IGNORE
        return Inputs({"h": h, "weight": weight}, given={"targets": targets})

    def run(inputs: Inputs, backend: str) -> tuple[Tensor, ...]:
        assert inputs.given is not None
        is_wide = inputs.leaves["h"].dtype == torch.float64
        nats = cross_entropy.linear_cross_entropy(
            **inputs.leaves, **inputs.given, compute_dtype=None if is_wide else dtype,
            backend=backend,
        )  # fmt: skip
        return (nats,)

    usable = cross_entropy.usable_backends(device, dtype)
    dims = loss_dims(vocab_size, d_model)
    return Case("cross_entropy", dims, *size, tuple(usable), "reference", make, run)


# --- inputs ---------------------------------------------------------------------------------------


def _normal(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=g, device=g.device)


def _uniform(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=g, device=g.device)


def _documents(n_rows: int, n_tokens: int, g: torch.Generator) -> Packing:
    """Rows of some documents each, of any lengths; the first row has a boundary for sure."""
    starts = torch.rand((n_rows, n_tokens), generator=g, device=g.device) < DOCUMENTS / n_tokens
    starts[0, n_tokens // DOCUMENTS] = True
    return Packing(starts.cumsum(1))
