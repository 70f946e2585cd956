"""The gated delta rule by GPU kernels of other packages: flash-linear-attention and FlashQLA.

Gate and step size come in computed, so that FlashQLA, which has no fused gate, can take the call.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from mixlab.ops.packing import Packing

FLASH_QLA_DIM = 128
"""The one query, key and value width that FlashQLA has kernels for."""


def obstacle(
    backend: str, device: torch.device, dtype: torch.dtype, k_dim: int, v_dim: int
) -> str | None:
    """Why a kernel cannot take such inputs; None if it can."""
    package, wheel = {
        "fla": ("fla", "flash-linear-attention"),
        "flash_qla": ("flash_qla", "flash-qla"),
    }[backend]
    if device.type != "cuda":
        return f"the device is {device.type!r} and its kernels need CUDA"
    if not _is_installed(package):
        return f"the package {wheel!r} is not installed"
    if dtype == torch.float64:
        return "its kernels have no float64"
    if backend == "fla":
        # Its tiles hold the whole key width.
        return None if k_dim <= 256 else f"head_dim = {k_dim} is above 256"
    if dtype == torch.float32:
        return "its kernels take float16 and bfloat16 only, and the inputs are float32"
    if k_dim != FLASH_QLA_DIM or v_dim != FLASH_QLA_DIM:
        return f"it takes heads of {FLASH_QLA_DIM} only, and these are {k_dim} and {v_dim} wide"
    return None


@cache
def _is_installed(package: str) -> bool:
    return find_spec(package) is not None


def run_fla(
    q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, b: Tensor,
    state: Tensor | None, packing: Packing | None, normalize_qk: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The chunked Triton kernel; one token without gradients goes to its step kernel."""
    from fla.ops.gated_delta_rule import (  # heavy, CUDA only
        chunk_gated_delta_rule,
        fused_recurrent_gated_delta_rule,
    )

    is_step = q.shape[1] == 1 and packing is None and not torch.is_grad_enabled()
    kernel = fused_recurrent_gated_delta_rule if is_step else chunk_gated_delta_rule
    return _call(kernel, q, k, v, log_a, b, state, packing, normalize_qk)


def run_flash_qla(
    q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, b: Tensor,
    state: Tensor | None, packing: Packing | None, normalize_qk: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """FlashQLA's fused kernels; each is compiled at first use, for up to minutes."""
    from flash_qla import chunk_gated_delta_rule  # heavy, CUDA only

    return _call(chunk_gated_delta_rule, q, k, v, log_a, b, state, packing, normalize_qk)


def _call(
    kernel: Callable[..., Any],
    q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, b: Tensor,
    state: Tensor | None, packing: Packing | None, normalize_qk: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    shape, cu_seqlens = v.shape, None
    if packing is not None:
        # Both kernels take packed rows as one long row with offsets.
        cu_seqlens = packing.cu_seqlens().long()
        q, k, v, log_a, b = (x.reshape(1, -1, *x.shape[2:]) for x in (q, k, v, log_a, b))
    o, state = kernel(
        q=q, k=k, v=v.to(q.dtype), g=log_a, beta=b,
        scale=q.shape[-1] ** -0.5,
        initial_state=state,
        output_final_state=packing is None,
        use_qk_l2norm_in_kernel=normalize_qk,
        cu_seqlens=cu_seqlens,
    )  # fmt: skip
    return o.view(shape), state
