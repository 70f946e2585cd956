"""Stock weights of a Gated DeltaNet layer by our names."""


def split_stock(tensors: dict, *, n_keys: int, n_heads: int, k_dim: int) -> dict:
    """Stock weights (or gradients) by our names, from the fused or from the flat layout."""
    n_shared = n_heads // n_keys
    out = {
        "conv1d.weight": tensors["conv1d.weight"], "A_log": tensors["A_log"],
        "dt_bias": tensors["dt_bias"], "o_norm.weight": tensors["norm.weight"],
        "o_proj.weight": tensors["out_proj.weight"],
    }  # fmt: skip
    if "in_proj_qkvz.weight" in tensors:
        # Interleaved: for each key head its query, key, values and gates, one after the other.
        wide = n_shared * k_dim
        per_head = tensors["in_proj_qkvz.weight"].unflatten(0, (n_keys, -1))
        parts = per_head.split([k_dim, k_dim, wide, wide], dim=1)
        for name, part in zip("qkvg", parts, strict=True):
            out[f"{name}_proj.weight"] = part.flatten(0, 1)
        per_head = tensors["in_proj_ba.weight"].unflatten(0, (n_keys, -1))
        for name, part in zip("ba", per_head.split([n_shared, n_shared], dim=1), strict=True):
            out[f"{name}_proj.weight"] = part.flatten(0, 1)
    else:
        sizes = [n_keys * k_dim, n_keys * k_dim, n_heads * k_dim]
        for name, part in zip("qkv", tensors["in_proj_qkv.weight"].split(sizes), strict=True):
            out[f"{name}_proj.weight"] = part
        out["g_proj.weight"] = tensors["in_proj_z.weight"]
        out["b_proj.weight"] = tensors["in_proj_b.weight"]
        out["a_proj.weight"] = tensors["in_proj_a.weight"]
    return out
