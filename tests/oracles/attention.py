"""Softmax attention from the definition, one query at a time, in plain NumPy float64."""

import numpy as np


def attention(q, k, v, scale, window=None, ids=None):
    """q (B, T, H, K), k (B, S, G, K), v (B, S, G, V); queries are the last T of S positions."""
    n_batch, n_queries, n_heads, _ = q.shape
    n_keys, n_groups = k.shape[1:3]
    out = np.zeros((n_batch, n_queries, n_heads, v.shape[-1]))
    for b in range(n_batch):
        for h in range(n_heads):
            g = h // (n_heads // n_groups)
            for t in range(n_queries):
                here = n_keys - n_queries + t
                seen = [
                    s
                    for s in range(here + 1)
                    if (window is None or here - s < window)
                    and (ids is None or ids[b, s] == ids[b, here])
                ]
                scores = np.array([scale * q[b, t, h] @ k[b, s, g] for s in seen])
                shares = np.exp(scores - scores.max())
                out[b, t, h] = (shares / shares.sum()) @ v[b, seen, g]
    return out


def rope(x, positions, theta, rope_dim, layout):
    """Turn pairs of channels of x (T, K) as complex numbers; the rest of K passes through."""
    out = x.copy()
    half = rope_dim // 2
    for i in range(half):
        a, b = (i, i + half) if layout == "half" else (2 * i, 2 * i + 1)
        turned = (x[:, a] + 1j * x[:, b]) * np.exp(1j * positions * theta ** (-2 * i / rope_dim))
        out[:, a], out[:, b] = turned.real, turned.imag
    return out
