"""The gated delta rule in the paper's transition-matrix form, in plain NumPy float64.

Written from equation to loop; it shares no code and no algebra with mixlab.ops.
"""

import numpy as np


def gated_delta_rule(q, k, v, log_a, b, state=None, ids=None):
    """S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T, for every row and head by itself.

    q, k (B, T, G, K); v (B, T, H, V); log_a, b (B, T, H); state (B, H, K, V); ids (B, T) document
    numbers. Returns o (B, T, H, V) and the last states.
    """
    n_batch, n_tokens, n_keys, k_dim = k.shape
    n_heads, v_dim = v.shape[2:]
    o = np.zeros((n_batch, n_tokens, n_heads, v_dim))
    last = np.zeros((n_batch, n_heads, k_dim, v_dim))
    for row in range(n_batch):
        for head in range(n_heads):
            key_head = head * n_keys // n_heads
            s = np.zeros((k_dim, v_dim)) if state is None else state[row, head]
            for t in range(n_tokens):
                if ids is not None and (t == 0 or ids[row, t] != ids[row, t - 1]):
                    s = np.zeros((k_dim, v_dim))
                key, step = k[row, t, key_head], b[row, t, head]
                erase = np.eye(k_dim) - step * np.outer(key, key)
                s = np.exp(log_a[row, t, head]) * erase @ s
                s = s + step * np.outer(key, v[row, t, head])
                o[row, t, head] = s.T @ q[row, t, key_head] / np.sqrt(k_dim)
            last[row, head] = s
    return o, last
