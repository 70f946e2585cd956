"""What this machine has, and what is missing for what."""

import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

from mixlab.core import units
from mixlab.core.provenance import cpu_model, memory_bytes, n_usable_cores
from mixlab.jobs.cache import cache_dir
from mixlab.jobs.device import is_bf16_fast, measure_matmul_flops

Finding = tuple[str, str, str]
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
    rows += [_extra_row(*extra) for extra in EXTRAS]
    has_compiler = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
    rows.append(
        ("C++ compiler", "yes" if has_compiler else "no", "train.compile=true on a CPU needs one")
    )
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
    rows.append(_extra_row("fla", "flash-linear-attention", "gpu", "Gated DeltaNet kernels"))
    rows.append(_triton_row())
    return rows


def _triton_row() -> Finding:
    """FLA refuses its Gated DeltaNet backward on Hopper with some Triton versions."""
    try:
        found = version("triton")
    except PackageNotFoundError:
        return ("Triton", "missing", "needed for Gated DeltaNet kernels and torch.compile")
    parts = tuple(int(p) for p in found.split(".")[:3] if p.isdigit())
    is_hopper = torch.cuda.get_device_capability(0)[0] == 9
    if is_hopper and (3, 4) <= parts < (3, 7, 1):
        has_tilelang = find_spec("tilelang") is not None
        meaning = (
            "on Hopper, flash-linear-attention takes TileLang for the Gated DeltaNet backward"
            if has_tilelang
            else "on Hopper, flash-linear-attention refuses the Gated DeltaNet backward with "
            "Triton 3.4 to 3.7.0: install tilelang, or Triton 3.7.1 or newer"
        )
        return ("Triton", found, meaning)
    return ("Triton", found, "serves Gated DeltaNet kernels and torch.compile")


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
