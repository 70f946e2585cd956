"""Gated delta rule: a matrix-valued state, decayed and then corrected at every token.

    S_t = a_t S_{t-1} + b_t k_t (v_t - (a_t S_{t-1})^T k_t)^T
    o_t = S_t^T q_t / sqrt(K)

Without decay (log_a = 0) this is the delta rule of DeltaNet.
Source: Yang, Kautz, Hatamizadeh, "Gated Delta Networks" [arXiv:2412.06464]; without decay: Yang et
        al. [arXiv:2406.06484].
Shapes: B batch, T tokens, G key heads, H value heads (a multiple of G; value head h uses query and
        key of head h // (H / G)), K query/key width of a head, V value width of a head.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mixlab.core.errors import BackendError
from mixlab.ops.gated_delta_rule.chunked import run_chunked
from mixlab.ops.gated_delta_rule.kernel_ops import run_kernel
from mixlab.ops.gated_delta_rule.kernels import INSTALLED, fla_step, obstacle
from mixlab.ops.gated_delta_rule.recurrent import run_recurrent
from mixlab.ops.packing import Packing

Backend = Literal["recurrent", "chunked", "triton", "fla", "flash_qla"]
"""`recurrent` is the definition, token by token; `chunked` is plain PyTorch in matrix form;
`triton` has the kernels of this package, `fla` those of flash-linear-attention, `flash_qla` those
of FlashQLA."""

KERNELS: tuple[Backend, ...] = ("flash_qla", "triton", "fla")
"""Those for GPUs, the fastest first."""


class DeltaRuleOutput(NamedTuple):
    o: Tensor  # (B, T, H, V), dtype of `v`
    state: Tensor | None  # (B, H, K, V), float32 or wider; None for packed rows, or if not wanted


def gated_delta_rule(
    *,
    q: Tensor,  # (B, T, G, K)
    k: Tensor,  # (B, T, G, K), unit length along K unless `normalize_qk`
    v: Tensor,  # (B, T, H, V)
    log_a: Tensor,  # (B, T, H), log of the decay, <= 0, float32 or wider
    b: Tensor,  # (B, T, H), step size of the correction, in [0, 2]
    state: Tensor | None,  # (B, H, K, V), or None at the start of a document
    packing: Packing | None = None,
    normalize_qk: bool = False,
    final_state: bool = True,
    backend: Backend,
) -> DeltaRuleOutput:
    """Run the rule over T tokens with exactly the named backend.

    `normalize_qk` divides queries and keys by their length first, sqrt(sum of squares + 1e-6).
    `packing` starts every document from a zero state; packed rows are never continued, so it
    excludes a state. Without `final_state` the state after the last token is not handed out, which
    spares the kernels its memory. Second derivatives exist for `recurrent` only.

    Raises:
        BackendError: the named backend cannot run on these inputs.
    """
    assert state is None or packing is None, "packed rows are never continued"
    assert v.shape[2] % k.shape[2] == 0, "value heads must be a multiple of key heads"
    inputs = (q, k, v, log_a, b, state, packing, normalize_qk)
    if backend == "recurrent":
        o, state = run_recurrent(*inputs)
    elif backend == "chunked":
        o, state = run_chunked(*inputs)
    else:
        pick_backend(backend, q.device, q.dtype, k_dim=k.shape[-1], v_dim=v.shape[-1])
        is_step = q.shape[1] == 1 and packing is None and not torch.is_grad_enabled()
        if is_step and backend == "fla":
            o, state = fla_step(q, k, v, log_a, b, state, normalize_qk)
        else:
            o, state = run_kernel(backend, *inputs, final_state and packing is None)
    return DeltaRuleOutput(o, state if final_state and packing is None else None)


def pick_backend(
    requested: str, device: torch.device, dtype: torch.dtype, *, k_dim: int, v_dim: int,
    b_max: float = 1.0, preferred: Sequence[str] = (),
) -> Backend:  # fmt: skip
    """Settle "auto" for inputs of this kind, and refuse what cannot run.

    "auto" for half-precision inputs on a CUDA device is the first of `usable_backends`, or of
    those `preferred` that are among them, else `chunked`. A backend asked for by name is that one
    or an error. `b_max` is the largest step size that may come.

    Raises:
        BackendError: `requested` cannot run on such inputs; the message says why.
    """
    if requested in ("recurrent", "chunked"):
        return requested
    if requested == "auto":
        if dtype not in (torch.bfloat16, torch.float16):
            return "chunked"
        usable = usable_backends(device, dtype, k_dim=k_dim, v_dim=v_dim, b_max=b_max)
        return next((name for name in usable if name in preferred), usable[0])
    reason = obstacle(requested, device, dtype, k_dim, v_dim, b_max)
    if reason:
        raise BackendError(
            f"gated_delta_rule: backend {requested!r} cannot run: {reason}. "
            "backend 'chunked' runs everywhere, and 'auto' takes the fastest one that fits."
        )
    return requested


def step_backend(requested: str, settled: Backend) -> Backend:
    """What takes single tokens where `settled` takes many: the recurrence, or `fla`'s kernel of it.

    A kernel asked for by name has no say in this, except for `fla`.
    """
    if settled == "fla" or (requested == "auto" and settled in ("triton", "flash_qla")):
        return "fla" if "fla" in INSTALLED else "recurrent"
    return "recurrent"


def usable_backends(
    device: torch.device, dtype: torch.dtype, *, k_dim: int, v_dim: int, b_max: float = 1.0
) -> list[Backend]:
    """The backends in matrix form that are worth a try on such inputs, in order of preference.

    `fla` is not where `triton` can run: it is slower there, and tunes itself for over a minute.
    """
    able = [name for name in KERNELS if not obstacle(name, device, dtype, k_dim, v_dim, b_max)]
    if "triton" in able and "fla" in able:
        able.remove("fla")
    return [*able, "chunked"]
