"""Where the device's time goes: the profile of a few updates, summed by kind of work."""

import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# The first kind whose pattern occurs in a kernel's (on the CPU: an operator's) name has it.
_KINDS = (
    ("between processes", r"nccl|c10d|gloo"),
    ("optimizer", r"adam|multi_tensor|foreach|lerp"),
    ("norm", r"^triton_.*norm"),
    ("compiled elementwise", r"^triton_(poi|per|red)_"),
    ("gated delta rule", r"delta|chunk_|_wy|wy_|kkt|solve_tril|merge_16x16|tl_|qla|recurrent"
                         r"|^(prepare|scan_states|scan_gradients|scan_outputs|score_gradients|"
                         r"key_gradients|sum_parts)$"),
    ("attention", r"flash|fmha|attention|sdpa|compute_dot_do_o|convert_dq"),
    ("matrix products", r"gemm|nvjet|cutlass|matmul|::mm|addmm|::bmm|baddbmm|linear|xmma|splitk"
                        r"|swiglu_product"),
    ("convolution", r"conv"),
    ("cross-entropy", r"softmax|nll|cross_entropy|logsumexp|_nats_kernel|_score_kernel"),
    ("norm", r"norm"),
    ("experts' sorting", r"sort|histogram|bincount|scan|index_select|index_put|scatter|gather"),
    ("embedding", r"embedding"),
    ("copies and casts", r"copy|memcpy|memset|cat|fill|_to_copy|contiguous"),
    ("elementwise", r"elementwise|vectorized|reduce|mul|add|silu|sigmoid|exp|where|sum|pow|rsqrt"
                    r"|swiglu"),
)  # fmt: skip


class KindTime(NamedTuple):
    """Time of one kind of work in one update."""

    kind: str
    ms: float
    n_calls: float
    longest: str  # the name that took most of it


def kind_of_kernel(name: str) -> str:
    """The kind of work that a kernel or operator of this name does, as far as names tell."""
    lower = name.lower()
    return next((kind for kind, pattern in _KINDS if re.search(pattern, lower)), "other")


def kernel_times(
    run_update: Callable[[], object], device: torch.device, n_updates: int = 2
) -> list[KindTime]:
    """Profile `n_updates` calls; the mean time of each kind of work, longest first.

    On a GPU these are the kernels' own times, on the CPU those of operators without their callees.
    """
    is_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if is_cuda else [])
    with profile(activities=activities) as recorded:
        for _ in range(n_updates):
            run_update()
        if is_cuda:
            torch.cuda.synchronize(device)
    by_kind: dict[str, dict[str, tuple[float, int]]] = {}
    for event in recorded.key_averages():
        if is_cuda:
            if event.device_type != DeviceType.CUDA:
                continue
            microseconds = event.self_device_time_total
        else:
            microseconds = event.self_cpu_time_total
        if microseconds:
            names = by_kind.setdefault(kind_of_kernel(event.key), {})
            names[event.key] = (microseconds, event.count)
    rows = [
        KindTime(
            kind,
            sum(us for us, _ in names.values()) / n_updates / 1000,
            sum(n for _, n in names.values()) / n_updates,
            max(names, key=lambda name: names[name][0]),
        )
        for kind, names in by_kind.items()
    ]
    return sorted(rows, key=lambda row: -row.ms)
