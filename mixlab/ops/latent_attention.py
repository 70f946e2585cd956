"""Attention whose keys and values are expanded from one small latent per token.

    k_s = [W_k c_s ; r_s]   v_s = W_v c_s   for every head, with r_s shared by all heads

Source: DeepSeek-V2 [arXiv:2405.04434], section 2.1 and appendix C.
Cost:   `expanded` makes H (N + V) numbers of every latent, then works at width N + R;
        `absorbed` moves W_k into the query and W_v behind the sum, then works at width L + R
        without ever expanding a latent: less for one query, more for many.
Shapes: B batch, T queries, S tokens kept (queries are the last T), H heads, L width of the latent,
        N content and R rotary width of a key, V value width of a head.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mixlab.ops.attention import Backend as AttentionBackend
from mixlab.ops.attention import attention
from mixlab.ops.dtypes import at_least_float32
from mixlab.ops.packing import Packing, causal_mask

Backend = Literal["expanded", "absorbed"]


def latent_attention(
    *,
    q_nope: Tensor,  # (B, T, H, N), N may be 0
    q_rope: Tensor,  # (B, T, H, R), already turned
    latent: Tensor,  # (B, S, L)
    k_rope: Tensor,  # (B, S, R), already turned
    weight: Tensor,  # (H * (N + V), L): per head N rows W_k, then V rows W_v
    scale: float,
    packing: Packing | None = None,
    backend: Backend = "expanded",
    attention_backend: AttentionBackend = "auto",
    preferred: Sequence[str] = (),
) -> Tensor:
    """(B, T, H, V), causal. `attention_backend` is the kernel that `expanded` ends in; `preferred`
    settles its `auto`."""
    n_heads, nope = q_nope.shape[-2:]
    value = weight.shape[0] // n_heads - nope
    if backend == "absorbed":
        w = weight.unflatten(0, (n_heads, nope + value))  # (H, N + V, L)
        w_k, w_v = w.split([nope, value], dim=1)
        return _absorbed(q_nope, q_rope, latent, k_rope, w_k, w_v, scale, packing)
    kv = F.linear(latent, weight).unflatten(-1, (n_heads, nope + value))  # (B, S, H, N + V)
    k_nope, v = kv.split([nope, value], dim=-1)
    shared = k_rope[:, :, None].expand(-1, -1, n_heads, -1)  # (B, S, H, R)
    q = torch.cat([q_nope, q_rope], dim=-1)  # (B, T, H, N + R)
    k = torch.cat([k_nope, shared.to(k_nope.dtype)], dim=-1)  # (B, S, H, N + R)
    return attention(
        q=q, k=k, v=v, scale=scale, packing=packing, backend=attention_backend,
        preferred=preferred,
    )  # fmt: skip


def _absorbed(
    q_nope: Tensor,
    q_rope: Tensor,
    latent: Tensor,
    k_rope: Tensor,
    w_k: Tensor,  # (H, N, L)
    w_v: Tensor,  # (H, V, L)
    scale: float,
    packing: Packing | None,
) -> Tensor:
    """All heads read the same latents, so they are simply more queries of one wide head."""
    n_queries, n_keys = q_rope.shape[1], latent.shape[1]
    q_latent = torch.einsum("bthn,hnl->bthl", q_nope, w_k)  # (B, T, H, L)
    q = scale * torch.cat([q_latent, q_rope.to(q_latent.dtype)], dim=-1)  # (B, T, H, L + R)
    k = torch.cat([latent, k_rope], dim=-1).to(q.dtype)  # (B, S, L + R)
    scores = at_least_float32(q.flatten(1, 2) @ k.mT).unflatten(1, q.shape[1:3])  # (B, T, H, S)
    if n_queries > 1:  # one query is the last token, which sees everything kept
        mask = causal_mask(n_queries, n_keys, None, q.device) if packing is None else packing.mask()
        mask = mask.expand(q.shape[0], 1, -1, -1).transpose(1, 2)  # (B, T, 1, S)
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.softmax(dim=-1).to(latent.dtype)
    o_latent = (weights.flatten(1, 2) @ latent).unflatten(1, q.shape[1:3])  # (B, T, H, L)
    return torch.einsum("bthl,hvl->bthv", o_latent, w_v)
