"""The gated delta rule one token at a time: slow, differentiable, and the definition."""

import torch
from torch import Tensor

from mixlab.ops.dtypes import at_least_float32
from mixlab.ops.gated_delta_rule.l2_norm import l2_norm
from mixlab.ops.packing import Packing


def run_recurrent(
    q: Tensor,  # (B, T, G, K)
    k: Tensor,  # (B, T, G, K)
    v: Tensor,  # (B, T, H, V)
    log_a: Tensor,  # (B, T, H)
    b: Tensor,  # (B, T, H)
    state: Tensor | None,  # (B, H, K, V)
    packing: Packing | None,
    normalize_qk: bool,
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H, V) and the state after the last token, (B, H, K, V)."""
    out_dtype = v.dtype
    q, k, v, log_a, b = (at_least_float32(x) for x in (q, k, v, log_a, b))
    if normalize_qk:
        q, k = l2_norm(q), l2_norm(k)
    n_batch, n_tokens, n_keys, k_dim = k.shape
    n_heads, v_dim = v.shape[-2:]
    # R = H / G value heads share a key head: (B, T, G, R, ...)
    v, a, b = (x.unflatten(2, (n_keys, -1)) for x in (v, log_a.exp(), b))
    is_start = None if packing is None else packing.is_start()[..., None, None, None, None]
    s = k.new_zeros(n_batch, n_heads, k_dim, v_dim) if state is None else state
    s = s.unflatten(1, (n_keys, -1))  # (B, G, R, K, V)
    outputs = []
    for t in range(n_tokens):
        s = s * a[:, t, ..., None, None]
        if is_start is not None:
            s = s.masked_fill(is_start[:, t], 0.0)
        recalled = torch.einsum("bgrkv,bgk->bgrv", s, k[:, t])
        error = (v[:, t] - recalled) * b[:, t, ..., None]  # (B, G, R, V)
        s = s + torch.einsum("bgk,bgrv->bgrkv", k[:, t], error)
        outputs.append(torch.einsum("bgrkv,bgk->bgrv", s, q[:, t]))
    o = torch.stack(outputs, dim=1).flatten(2, 3) * k_dim**-0.5  # (B, T, H, V)
    return o.to(out_dtype), s.flatten(1, 2)
