"""What stands between the products of a prompt, fused: for calls that need no gradient.

A prompt of a small model is hundreds of elementwise operations, each of which a GPU waits for and
moves whole activations for. Here they are four: a sum and its norm, queries and keys into their
places, the inputs of the delta rule, and a norm with a gate. Each is defined in PyTorch and has a
Triton kernel, which runs wherever the tensors are on a CUDA GPU, on the current device.
Norms have no weights here; those go into the products behind them.
Shapes: B rows, T tokens, N = B * T, D width of the stream, H heads, G key-value or key heads,
        K width of a key, V width of a value.
"""

from importlib.util import find_spec
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mixlab.ops.dtypes import at_least_float32
from mixlab.ops.gated_delta_rule.l2_norm import l2_norm
from mixlab.ops.rope import RopeTable, apply_rope

HAS_TRITON = find_spec("triton") is not None
Gate = Literal["none", "silu", "sigmoid"]


def add_and_norm(stream: Tensor, added: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    """Add to the stream (N, D) in place, and return it over its root mean square, in `dtype`."""
    if _has_kernel(stream):
        from mixlab.ops.prompt import kernels

        return kernels.add_and_norm(stream, added, eps, dtype)
    if added is not None:
        stream += added
    return _unit(stream, eps).to(dtype)


def place_heads(
    heads: Tensor,  # (B, T, H + 2 G, K), queries, keys and values; channels side by side
    q: Tensor,  # (B, T, H, K), to be written
    kv: Tensor,  # (2, B, G, T, K), to be written; channels side by side
    table: RopeTable | None,  # of T positions, for the first channels, in pairs of neighbours
    scale: Tensor | None,  # (H + G, K), behind a norm of each query and key; None: no norm
    eps: float,
) -> None:
    """Queries and keys normed and turned, and all three where attention reads them."""
    if _has_kernel(heads):
        from mixlab.ops.prompt import kernels

        return kernels.place_heads(heads, q, kv, table, scale, eps)
    n_keys = kv.shape[2]
    qk, v = heads.tensor_split([q.shape[2] + n_keys], dim=2)
    qk = at_least_float32(qk)
    if scale is not None:
        qk = _unit(qk, eps) * scale
    if table is not None:
        qk = apply_rope(qk, table, "interleaved")
    q.copy_(qk[:, :, : q.shape[2]])
    kv[0] = qk[:, :, q.shape[2] :].transpose(1, 2)
    kv[1] = v.transpose(1, 2)


class DeltaInputs(NamedTuple):
    """As `gated_delta_rule` takes them, queries and keys of unit length."""

    q: Tensor  # (B, T, G, K)
    k: Tensor  # (B, T, G, K)
    v: Tensor  # (B, T, H, V)
    log_a: Tensor  # (B, T, H), float32 or wider
    b: Tensor  # (B, T, H), float32 or wider


class DeltaLayout(NamedTuple):
    """Where the joint projection of Gated DeltaNet has what, in columns from the first."""

    n_keys: int  # G pairs of a query and a key head, K wide each, from column 0
    k_dim: int
    n_values: int  # H value heads behind them, V wide each
    v_dim: int
    b: int  # first of the H columns that make the step sizes
    a: int | None  # first of those that make the decays; None: nothing fades

    @property
    def n_channels(self) -> int:
        """Those that are convolved."""
        return 2 * self.n_keys * self.k_dim + self.n_values * self.v_dim


def delta_inputs(
    x: Tensor,  # (B, T, columns), columns side by side
    layout: DeltaLayout,
    taps: Tensor,  # (W, channels), the last one for the current token
    decay: Tensor | None,  # (H,), -A
    dt_bias: Tensor | None,  # (H,)
    b_max: float,
) -> DeltaInputs:
    """The short convolution with SiLU, unit lengths, decays and step sizes; texts begin here."""
    if _has_kernel(x):
        from mixlab.ops.prompt import kernels

        return kernels.delta_inputs(x, layout, taps, decay, dt_bias, b_max)
    n_before, n_tokens = len(taps) - 1, x.shape[1]
    wide = at_least_float32(x)
    padded = F.pad(wide[..., : layout.n_channels], (0, 0, n_before, 0))
    y = F.silu(sum(padded[:, i : i + n_tokens] * tap for i, tap in enumerate(taps)))
    qk, v = y.tensor_split([2 * layout.n_keys * layout.k_dim], dim=-1)
    q, k = l2_norm(qk.unflatten(-1, (layout.n_keys, 2, layout.k_dim))).unbind(3)
    v = v.unflatten(-1, (layout.n_values, layout.v_dim))
    b = b_max * wide[..., layout.b : layout.b + layout.n_values].sigmoid()
    log_a = torch.zeros_like(b)
    if layout.a is not None:
        log_a = decay * F.softplus(wide[..., layout.a : layout.a + layout.n_values] + dt_bias)
    return DeltaInputs(*(part.to(x.dtype).contiguous() for part in (q, k, v)), log_a, b)


def gate(x: Tensor, by: Tensor | None, kind: Gate, *, eps: float | None) -> Tensor:
    """x (N, H, V) over its root mean square per head, times the gate (N, H V); (N, H V).

    Without `eps`, x as it is.
    """
    if _has_kernel(x):
        from mixlab.ops.prompt import kernels

        return kernels.gate(x, by, kind, eps)
    y = at_least_float32(x) if eps is None else _unit(x, eps)
    y = y.flatten(1)
    if by is not None:
        z = at_least_float32(by)
        y = y * (F.silu(z) if kind == "silu" else z.sigmoid())
    return y.to(x.dtype)


def _unit(x: Tensor, eps: float) -> Tensor:
    """In float32 or wider."""
    return F.rms_norm(at_least_float32(x), x.shape[-1:], None, eps)


def _has_kernel(x: Tensor) -> bool:
    return x.is_cuda and HAS_TRITON
