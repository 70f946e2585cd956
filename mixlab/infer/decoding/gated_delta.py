"""Single tokens through Gated DeltaNet: a matrix per head, changed in place.

With S the faded state, r = S^T k what it recalls and e = b (v - r) the correction, the new state is
S + k e^T, and reading it with q gives S^T q + (k . q) e: so S is read once, for k and q together.
Shapes: B rows, G key heads, R value heads per key head, K head_dim, V value width of a head,
        W taps, C channels of the convolution.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixlab.infer.decoding.rows import Rows
from mixlab.infer.decoding.steps import (
    Form,
    Projection,
    RowCache,
    SequenceStep,
    Unit,
    fused,
    grown,
    output,
)
from mixlab.nn.norm import RMSNorm
from mixlab.nn.sequence_mixers.gated_deltanet import GatedDeltaNet, GatedDeltaNetState
from mixlab.ops.dtypes import at_least_float32
from mixlab.ops.few_rows import DeltaRuleKernel
from mixlab.ops.gated_delta_rule.l2_norm import EPS

ALIGNED = 16
"""Numbers at a multiple of which a GPU likes rows of a product to begin."""


class DeltaCache(RowCache):
    """The last inputs of the convolution, and the memories; no row grows."""

    def __init__(self, tail: Tensor, memory: Tensor, order: Tensor) -> None:
        self.tail, self.memory = tail, memory  # (rows, W - 1, C), (rows, G, K, RV)
        self._order = order

    def reserve(self, n_rows: int, n_tokens: int) -> None:
        if n_rows > len(self.tail):
            self.tail = grown(self.tail, (n_rows, *self.tail.shape[1:]))
            self.memory = grown(self.memory, (n_rows, *self.memory.shape[1:]))

    def put(self, row: int, state: GatedDeltaNetState, n_before: int) -> None:
        self.fill(row, state.tail[..., self._order], state.memory)

    def fill(self, row: int, tail: Tensor, memory: Tensor) -> None:
        """Let rows from this one on have a tail (B, W - 1, C) in the order of this cache, and
        memories (B, H, K, V) in that of the mixer."""
        rows = slice(row, row + len(memory))
        self.tail[rows] = tail
        grouped = memory.unflatten(1, (self.memory.shape[1], -1))  # (B, G, R, K, V)
        self.memory[rows] = grouped.transpose(2, 3).flatten(3)

    def move(self, source: int, target: int, n_tokens: int, n_before: int) -> None:
        self.tail[target] = self.tail[source]
        self.memory[target] = self.memory[source]

    def row_bytes(self, n_tokens: int) -> int:
        return sum(t[0].numel() * t.itemsize for t in (self.tail, self.memory))

    def aside(self, n_rows: int) -> list[Tensor]:
        return [self.tail[:n_rows].clone(), self.memory[:n_rows].clone()]

    def restore(self, kept: list[Tensor]) -> None:
        for place, rows in zip((self.tail, self.memory), kept, strict=True):
            place[: len(rows)] = rows


class GatedDeltaNetStep(SequenceStep):
    """All projections as one product; query and key of a head beside each other."""

    def __init__(self, mixer: GatedDeltaNet, norm: RMSNorm, form: Form) -> None:
        cfg = self.cfg = mixer.cfg
        self.order = _query_beside_key(mixer).to(norm.weight.device)  # (C,)
        parts: list[nn.Linear] = [mixer.q_proj, mixer.k_proj, mixer.v_proj]
        self.widths = {"qkv": cfg.conv_channels}
        if mixer.g_proj is not None:
            parts.append(mixer.g_proj)
            self.widths["g"] = cfg.v_heads * cfg.v_dim
        parts.append(mixer.b_proj)
        self.widths["b"] = cfg.v_heads
        if mixer.a_proj is not None:
            parts.append(mixer.a_proj)
            self.widths["a"] = cfg.v_heads
        weight, bias = fused(norm, parts)
        weight[: len(self.order)] = weight[self.order]
        assert bias is None, "none of these maps has one"
        if weight.is_cuda and len(weight) % ALIGNED:  # what begins elsewhere is multiplied slower
            self.widths["unused"] = -len(weight) % ALIGNED
            weight = nn.functional.pad(weight, (0, 0, 0, self.widths["unused"]))
        self.projection = Projection(norm, weight, bias, form)
        self.decay = self.dt_bias = None
        if mixer.a_proj is not None:
            self.decay = -at_least_float32(mixer.A_log.detach()).exp()  # (H,)
            self.dt_bias = at_least_float32(mixer.dt_bias.detach())
        self.taps: Tensor | None = None
        if mixer.conv1d is not None:
            taps = at_least_float32(mixer.conv1d.weight.detach()[:, 0])
            self.taps = taps[self.order].T.contiguous()  # (W, C)
        # Queries come out shorter by sqrt(K), through the factor under the root of their length.
        wide = at_least_float32(norm.weight.detach())
        stretch = wide.new_tensor([cfg.head_dim, 1.0]).view(1, 1, 2)
        self.stretch, self.offset = stretch, stretch * EPS
        self.unit = Unit(cfg.v_dim, cfg.norm_eps, wide)
        scale = mixer.o_norm.weight.detach().repeat(cfg.v_heads)
        self.output = output(mixer.o_proj, form, scale)
        self.dtype, self.wide = form.dtype, wide[:0]
        self.kernel: DeltaRuleKernel | None = None
        if form.has_kernels:
            self.kernel = DeltaRuleKernel(
                self.wide, n_heads=cfg.n_heads, v_heads=cfg.v_heads, head_dim=cfg.head_dim,
                v_dim=cfg.v_dim, taps=self.taps, decay=self.decay, dt_bias=self.dt_bias,
                length_eps=EPS, norm_eps=cfg.norm_eps, gated=cfg.output_gate,
                doubled=cfg.allow_neg_eigval, places=self._places(),
            )  # fmt: skip

    @staticmethod
    def fits(mixer: GatedDeltaNet) -> bool:
        """Always: whatever the kernel, single tokens go by the recurrence."""
        return True

    def new_cache(self) -> DeltaCache:
        cfg = self.cfg
        n_tail = max(0, cfg.conv_size - 1)
        tail = self.wide.new_zeros(0, n_tail, cfg.conv_channels, dtype=self.dtype)
        v_width = cfg.v_heads // cfg.n_heads * cfg.v_dim
        memory = self.wide.new_zeros(0, cfg.n_heads, cfg.head_dim, v_width)
        return DeltaCache(tail, memory, self.order)

    def __call__(self, x: Tensor, cache: DeltaCache, rows: Rows) -> Tensor:
        cfg, n_rows = self.cfg, len(rows)
        if self.kernel is not None:
            return self.output.add_to(x, self.kernel(self.projection(x), cache.tail, cache.memory))
        split = self.projection(x).split(list(self.widths.values()), dim=-1)
        parts = dict(zip(self.widths, split, strict=True))
        qkv = at_least_float32(self._convolve(parts["qkv"], cache.tail[:n_rows]))
        qk, v = qkv.split([2 * cfg.n_heads * cfg.head_dim, cfg.v_heads * cfg.v_dim], dim=-1)
        qk = qk.view(n_rows, cfg.n_heads, 2, cfg.head_dim)
        lengths = torch.addcmul(self.offset, torch.linalg.vecdot(qk, qk), self.stretch)
        qk = qk * lengths.rsqrt_()[..., None]  # (B, G, 2, K)
        v = v.view(n_rows, cfg.n_heads, -1, cfg.v_dim)  # (B, G, R, V)
        b = at_least_float32(parts["b"]).sigmoid().view(*v.shape[:3], 1)
        if cfg.allow_neg_eigval:
            b = 2 * b
        o = self._recall(qk, v, b, self._decay(parts, v), cache.memory[:n_rows])
        o = self.unit(o)
        if cfg.output_gate:
            o = o.mul_(F.silu(at_least_float32(parts["g"])).view_as(o))
        return self.output.add_to(x, o.view(n_rows, -1))

    def _places(self) -> dict[str, int]:
        """Where in a row of the projections each part begins."""
        ends = itertools.accumulate(self.widths.values())
        return {name: end - n for (name, n), end in zip(self.widths.items(), ends, strict=True)}

    def _convolve(self, qkv: Tensor, tail: Tensor) -> Tensor:
        """(B, C) through the taps; the tail (B, W - 1, C) moves on by one."""
        if self.taps is None:
            return F.silu(qkv)
        window = torch.cat([tail, qkv[:, None]], dim=1)  # (B, W, C)
        tail.copy_(window[:, 1:])
        return F.silu((window * self.taps).sum(dim=1), inplace=True)

    def _decay(self, parts: dict[str, Tensor], v: Tensor) -> Tensor | None:
        """(B, G, R, 1) by what the memories fade; None if they do not."""
        if self.decay is None:
            return None
        dt = F.softplus(at_least_float32(parts["a"]) + self.dt_bias)
        return (dt * self.decay).exp_().view(*v.shape[:3], 1)

    def _recall(self, qk: Tensor, v: Tensor, b: Tensor, a: Tensor | None, memory: Tensor) -> Tensor:
        """(B, G, R, V): what the memories (B, G, K, RV) give for q once they know k and v."""
        n_rows, n_keys, _, k_dim = qk.shape
        flat = memory.view(n_rows * n_keys, k_dim, -1)  # (BG, K, RV)
        pairs = qk.view(n_rows * n_keys, 2, k_dim)
        read = torch.bmm(pairs, flat).view(n_rows, n_keys, 2, *v.shape[2:])  # (B, G, 2, R, V)
        if a is not None:
            read = read * a[:, :, None]
            memory.view(n_rows, n_keys, k_dim, *v.shape[2:]).mul_(a[:, :, None])
        error = (v - read[:, :, 1]).mul_(b)  # (B, G, R, V)
        flat.baddbmm_(pairs[:, 1, :, None], error.view(len(flat), 1, -1))
        overlap = torch.linalg.vecdot(qk[:, :, 0], qk[:, :, 1])[..., None, None]  # (B, G, 1, 1)
        return torch.addcmul(read[:, :, 0], overlap, error)


def _query_beside_key(mixer: GatedDeltaNet) -> Tensor:
    """The channels q, k, v of all heads in the order q0 k0 q1 k1 ... v."""
    cfg = mixer.cfg
    width = cfg.n_heads * cfg.head_dim
    channels = torch.arange(cfg.conv_channels)
    q, k = (part.view(cfg.n_heads, 1, cfg.head_dim) for part in channels[: 2 * width].split(width))
    return torch.cat([torch.cat([q, k], dim=1).flatten(), channels[2 * width :]])
