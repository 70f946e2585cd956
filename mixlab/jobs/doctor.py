"""What this machine has, and what is missing for what."""

import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch
import torch.distributed as dist

from mixlab.core import units
from mixlab.core.cache import cache_dir
from mixlab.core.provenance import cpu_model, memory_bytes, n_usable_cores
from mixlab.jobs.device import is_bf16_fast, measure_matmul_flops
from mixlab.ops.gated_delta_rule import usable_backends
from mixlab.ops.gated_delta_rule.kernels import INSTALLED, TRITON, hopper_trap, obstacle

Finding = tuple[str, str, str]
COMPILER_IS_FOR = "writing text fast on a CPU, and train.compile=true there, need one"
EXTRAS = (
    ("datasets", "datasets", "data", "corpora hf and parquet"),
    ("transformers", "transformers", "hf", "parity checks against stock architectures"),
    ("pandas", "pandas", "notebook", "metrics as data frames"),
    ("lm_eval", "lm-eval", "eval", "mixlab eval --tasks"),
    ("fastapi", "fastapi", "serve", "mixlab serve"),
    ("tensorboard", "tensorboard", "tensorboard", "mirror of the metrics"),
    ("wandb", "wandb", "wandb", "mirror of the metrics"),
    ("trackio", "trackio", "trackio", "mirror of the metrics"),
)


def examine() -> list[Finding]:
    """(what, what is here, what that means), one row a finding."""
    rows: list[Finding] = []
    cores, memory = n_usable_cores(), memory_bytes()
    rows.append(("processor", f"{cpu_model()}, {cores} cores, {units.size(memory)}", ""))
    cpu = torch.device("cpu")
    dtype = torch.bfloat16 if is_bf16_fast(cpu) else None
    rate = units.flops(measure_matmul_flops(cpu, dtype))
    rows.append(
        (
            "bfloat16 on the CPU",
            "native" if dtype else "not native",
            f"train.precision=auto takes {'bf16' if dtype else 'fp32'}; measured {rate} FLOP/s",
        )
    )
    rows.append(("PyTorch", torch.__version__, f"{torch.get_num_threads()} threads per operation"))
    rows += _gpu_rows()
    rows.append(_ranks_row())
    rows += [_extra_row(*extra) for extra in EXTRAS]
    has_compiler = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
    rows.append(("C++ compiler", "yes" if has_compiler else "no", COMPILER_IS_FOR))
    free = units.size(shutil.disk_usage(_existing(cache_dir())).free)
    rows.append(("data cache", str(cache_dir()), f"{free} free; set MIXLAB_CACHE to move it"))
    return rows


def _gpu_rows() -> list[Finding]:
    if not torch.cuda.is_available():
        return [("NVIDIA GPU", "none", "training runs on the CPU")]
    rows = []
    for i in range(torch.cuda.device_count()):
        device = torch.device("cuda", i)
        properties = torch.cuda.get_device_properties(device)
        rate = units.flops(measure_matmul_flops(device, torch.bfloat16))
        rows.append(
            (
                f"GPU {i}",
                f"{properties.name}, {units.size(properties.total_memory)}",
                f"measured {rate} FLOP/s in bfloat16",
            )
        )
    device = torch.device("cuda", 0)
    rows.append(_triton_row())
    rows.append(_extra_row("fla", "flash-linear-attention", "gpu", "Gated DeltaNet kernels"))
    rows.append(_flash_qla_row(device))
    rows += [_delta_rule_row(device, width) for width in (128, 256)]
    return rows


def _ranks_row() -> Finding:
    """What `torchrun --nproc-per-node N` would train with here."""
    backends = [
        name
        for name, is_there in (
            ("NCCL", dist.is_available() and dist.is_nccl_available()),
            ("gloo", dist.is_available() and dist.is_gloo_available()),
        )
        if is_there
    ]
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if "NCCL" in backends and n_gpus:
        version = ".".join(str(part) for part in torch.cuda.nccl.version())
        backends[0] = f"NCCL {version}"
    if n_gpus > 1:
        meaning = f"torchrun --nproc-per-node {n_gpus} -m mixlab train ... takes all {n_gpus} GPUs"
    elif n_gpus == 1:
        meaning = "one GPU: several processes have nothing to share"
    else:
        meaning = "no GPU: several processes share the processor's cores"
    return ("several processes", " and ".join(backends) or "not in this PyTorch", meaning)


def _triton_row() -> Finding:
    if TRITON is None:
        return ("Triton", "missing", "needed for GPU kernels and torch.compile: pip install triton")
    trap = hopper_trap(torch.cuda.get_device_capability(0)[0])
    found = ".".join(str(part) for part in TRITON)
    if trap is None:
        return ("Triton", found, "serves GPU kernels and torch.compile")
    return (
        "Triton", found,
        f"{trap}. Until then flash-linear-attention refuses to train Gated DeltaNet here, and "
        "layers on backend auto take other kernels",
    )  # fmt: skip


def _flash_qla_row(device: torch.device) -> Finding:
    purpose = "fastest Gated DeltaNet kernels for heads of 128 on Hopper"
    if "flash_qla" not in INSTALLED:
        return ("flash-qla", "missing", f"{purpose}: pip install flash-qla tilelang")
    reason = obstacle("flash_qla", device, torch.bfloat16, 128, 128)
    kept = os.environ.get("TILELANG_CACHE_DIR", "~/.tilelang/cache")
    works = f"{purpose}; compiled at first use, minutes in all, and kept in {kept}"
    found = _extra_row("flash_qla", "flash-qla", "", "")[1]
    return ("flash-qla", found, works if reason is None else reason)


def _delta_rule_row(device: torch.device, width: int) -> Finding:
    """Which kernel a Gated DeltaNet layer takes by itself."""
    able = usable_backends(device, torch.bfloat16, k_dim=width, v_dim=width)
    rest = f"; also usable: {', '.join(able[1:])}" if able[1:] else ""
    return (f"Gated DeltaNet, heads of {width}", able[0], f"taken by backend auto{rest}")


def _extra_row(module: str, package: str, extra: str, purpose: str) -> Finding:
    if find_spec(module) is None:
        return (package, "missing", f'for {purpose}: pip install "mixlab[{extra}]"')
    try:
        return (package, version(package), purpose)
    except PackageNotFoundError:
        return (package, "yes", purpose)


def _existing(path):
    while not path.exists():
        path = path.parent
    return path
