"""Which GPU kernels can take a call, and those of flash-linear-attention and FlashQLA.

Gate and step size come in computed, so that FlashQLA, which has no fused gate, can take the call.
"""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch
from torch import Tensor

from mixlab.ops.gated_delta_rule import launch
from mixlab.ops.gated_delta_rule.kernel_ops import Documents, Kernel, register


def _triton_version() -> tuple[int, ...] | None:
    try:
        found = version("triton")
    except PackageNotFoundError:
        return None
    return tuple(int(part) for part in found.split("+")[0].split(".")[:3] if part.isdigit())


# Plain values, so that compiled code can settle a backend while it is traced.
PACKAGES = {
    "fla": ("fla", "flash-linear-attention"),
    "flash_qla": ("flash_qla", "flash-qla"),
    "triton": ("triton", "triton"),
}
INSTALLED = frozenset(
    name for name in ("fla", "flash_qla", "tilelang", "triton") if find_spec(name)
)
TRITON = _triton_version()
FLASH_QLA_DIM = 128
"""The one query, key and value width that FlashQLA has kernels for."""


def obstacle(
    backend: str, device: torch.device, dtype: torch.dtype, k_dim: int, v_dim: int,
    b_max: float = 1.0,
) -> str | None:  # fmt: skip
    """Why a kernel cannot take such inputs, with step sizes up to `b_max`; None if it can."""
    package, wheel = PACKAGES[backend]
    if device.type != "cuda":
        return f"the device is {device.type!r} and its kernels need CUDA"
    if package not in INSTALLED:
        return f"the package {wheel!r} is not installed"
    if dtype == torch.float64:
        return "its kernels have no float64"
    capability = _capability(device)
    if backend == "fla":
        if k_dim > 256:  # its tiles hold the whole key width
            return f"head_dim = {k_dim} is above 256"
        return hopper_trap(capability)
    if dtype == torch.float32:
        return "its kernels take float16 and bfloat16 only, and the inputs are float32"
    if backend == "triton":
        return launch.obstacle(capability, _shared_memory(device), k_dim, v_dim)
    if k_dim != FLASH_QLA_DIM or v_dim != FLASH_QLA_DIM:
        return f"it takes heads of {FLASH_QLA_DIM} only, and these are {k_dim} and {v_dim} wide"
    if b_max > 1:
        return f"it takes step sizes up to 1, and these reach {b_max:g}"
    if capability not in (9, 10):
        return f"it needs compute capability 9 or 10, and the GPU has {capability}"
    return None


def _capability(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).major


def _shared_memory(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def hopper_trap(capability: int) -> str | None:
    """Why flash-linear-attention would refuse its backward pass here; None if it does not.

    Triton 3.4 to 3.7.0 compiles one of its kernels wrongly for Hopper (compute capability 9). It
    then takes TileLang's version of that kernel, or raises an error in the middle of training.
    """
    if TRITON is None:
        return "Triton is not installed"
    if capability != 9 or "tilelang" in INSTALLED or not (3, 4) <= TRITON < (3, 7, 1):
        return None
    found = ".".join(str(part) for part in TRITON)
    return (
        f"Triton {found} compiles its backward pass wrongly for Hopper GPUs; install tilelang "
        "beside it, or Triton 3.7.1 or newer"
    )


def fla_step(
    q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, b: Tensor,
    state: Tensor | None, normalize_qk: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The recurrence itself in one kernel, for single tokens without gradients."""
    from fla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule  # heavy, CUDA only

    return fused_recurrent_gated_delta_rule(
        q=q, k=k, v=v.to(q.dtype), g=log_a, beta=b,
        scale=q.shape[-1] ** -0.5,
        initial_state=state,
        output_final_state=True,
        use_qk_l2norm_in_kernel=normalize_qk,
    )  # fmt: skip


def _fla_forward(q, k, v, log_a, b, state, documents: Documents | None, final_state):
    from fla.ops.gated_delta_rule.chunk import chunk_gated_delta_rule_fwd  # heavy, CUDA only

    g, o, inverse, final, _, _ = chunk_gated_delta_rule_fwd(
        q=q, k=k, v=v, g=log_a, beta=b,
        scale=k.shape[-1] ** -0.5,
        initial_state=state,
        output_final_state=final_state,
        **_fla_documents(documents),
    )  # fmt: skip
    return o, final, g, inverse


def _fla_backward(q, k, v, g, b, kept, state, do, dstate, documents: Documents | None):
    from fla.ops.gated_delta_rule.chunk import chunk_gated_delta_rule_bwd  # heavy, CUDA only

    dq, dk, dv, db, dlog_a, dinitial, _, _ = chunk_gated_delta_rule_bwd(
        q=q, k=k, v=v, g=g, beta=b, A=kept[0],
        scale=k.shape[-1] ** -0.5,
        initial_state=state, do=do, dht=dstate,
        **_fla_documents(documents),
    )  # fmt: skip
    return dq, dk, dv, dlog_a, db, dinitial


def _fla_documents(documents: Documents | None) -> dict[str, Tensor]:
    if documents is None:
        return {}
    return {"cu_seqlens": documents.cu_seqlens, "chunk_indices": documents.chunk_indices}


def _qla_forward(q, k, v, log_a, b, state, documents: Documents | None, final_state):
    from flash_qla.ops.gated_delta_rule.chunk import chunk_gated_delta_rule_fwd  # heavy, CUDA only

    # `is_train` decides together with the shapes how long documents are cut, and both passes must
    # cut alike.
    g, inverse, o, _, final, _ = chunk_gated_delta_rule_fwd(
        q=q, k=k, v=v, g=log_a, beta=b,
        scale=k.shape[-1] ** -0.5,
        initial_state=state,
        output_final_state=final_state,
        is_train=True,
        **_qla_documents(documents, v.shape[2]),
    )  # fmt: skip
    return o, final if final_state else None, g, inverse


def _qla_backward(q, k, v, g, b, kept, state, do, dstate, documents: Documents | None):
    from flash_qla.ops.gated_delta_rule.chunk import chunk_gated_delta_rule_bwd  # heavy, CUDA only

    dq, dk, dv, db, dlog_a, dinitial = chunk_gated_delta_rule_bwd(
        q=q, k=k, v=v, g=g, beta=b, A=kept[0],
        do=do, dht=dstate,
        scale=k.shape[-1] ** -0.5,
        initial_state=state,
        **_qla_documents(documents, v.shape[2]),
    )  # fmt: skip
    return dq, dk, dv, dlog_a, db, dinitial


QLA_BUSY = 40
"""Documents times heads from which a GPU is busy without cutting long documents into parts."""


def _qla_documents(documents: Documents | None, n_heads: int) -> dict[str, object]:
    if documents is None:
        return {"auto_cp": True}
    cu_seqlens, indices, offsets = documents
    # What its `prepare_varlen_metadata` would attach, so that no layer waits for the device.
    cu_seqlens._flash_qla_prepared_varlen = (64, offsets, len(indices), indices)
    # Deciding how to cut documents waits for the device, so it is left out where it is no use.
    few = (len(cu_seqlens) - 1) * n_heads <= QLA_BUSY
    return {"cu_seqlens": cu_seqlens, "auto_cp": few}


register("fla", Kernel(_fla_forward, _fla_backward))
register("flash_qla", Kernel(_qla_forward, _qla_backward))
register("triton", Kernel(launch.forward, launch.backward), n_kept=2)
