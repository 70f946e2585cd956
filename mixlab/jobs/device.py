"""What the hardware is and what follows from it: device, precision, matrix rate."""

import time
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

from mixlab.core.errors import ConfigError
from mixlab.core.provenance import cpu_model
from mixlab.jobs.court.verdicts import Verdicts
from mixlab.parallel import ALONE, World
from mixlab.training.config import TrainConfig


class Hardware(NamedTuple):
    """The settled answers to what the config left open."""

    device: torch.device
    precision: str  # "fp32" or "bf16"
    compile: bool = False
    world: World = ALONE  # the processes that train together
    kernels: Verdicts = Verdicts()  # which backends to take where the config says auto

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """Dtype of matrix products under autocast; None: no autocast."""
        return torch.bfloat16 if self.precision == "bf16" else None

    @property
    def gpus(self) -> list[torch.device]:
        """Where there are random generators besides the CPU's."""
        return [self.device] if self.device.type == "cuda" else []


def settle_hardware(cfg: TrainConfig, world: World = ALONE) -> Hardware:
    """Choose device, precision and whether to compile, where the config says auto.

    Each of several ranks takes the GPU of its number.

    Raises:
        ConfigError: a GPU was asked for by name and there is none, there are fewer GPUs than ranks,
            or the batch cannot be shared out.
    """
    _require_equal_shares(cfg, world)
    has_cuda = torch.cuda.is_available()
    if cfg.device == "cuda" and not has_cuda:
        raise ConfigError(
            "train.device", "cuda", "a usable NVIDIA GPU, and PyTorch finds none",
            "Run `mixlab doctor` for what is here, or set train.device=auto.",
        )  # fmt: skip
    device = torch.device("cuda" if has_cuda and cfg.device != "cpu" else "cpu")
    if device.type == "cuda" and world.size > 1:
        device = _own_gpu(world)
    precision = cfg.precision
    if precision == "auto":
        precision = "bf16" if is_bf16_fast(device) else "fp32"
    compiles = cfg.compile
    if compiles == "auto":
        compiles = device.type == "cuda" and find_spec("triton") is not None
    return Hardware(device, precision, compiles, world)


def _own_gpu(world: World) -> torch.device:
    if world.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            "--nproc-per-node", world.local_rank + 1,
            f"at most one process for each of the {torch.cuda.device_count()} GPUs here",
            "Set train.device=cpu to train on processors.",
        )  # fmt: skip
    torch.cuda.set_device(world.local_rank)
    return torch.device("cuda", world.local_rank)


def _require_equal_shares(cfg: TrainConfig, world: World) -> None:
    """Every rank must take equally many sequences, in whole forward passes."""
    if cfg.batch_size % world.size:
        raise ConfigError(
            "train.batch_size", cfg.batch_size,
            f"a multiple of the {world.size} processes that share it",
            f"The nearest are {_neighbours(cfg.batch_size, world.size)}.",
        )  # fmt: skip
    share = cfg.batch_size // world.size
    micro = min(cfg.micro_batch_size or share, share)  # a share may be less than a pass could take
    if share % micro:
        raise ConfigError(
            "train.micro_batch_size", micro,
            f"a divisor of the {share} sequences that each of {world.size} processes takes of "
            f"train.batch_size = {cfg.batch_size}",
        )  # fmt: skip


def _neighbours(n: int, divisor: int) -> str:
    below = n // divisor * divisor
    return f"{below} and {below + divisor}" if below else str(divisor)


def is_bf16_fast(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices natively; decided by its abilities."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def measure_matmul_flops(device: torch.device, dtype: torch.dtype | None) -> float:
    """FLOP/s of a large square matrix product here and now: what MFU is a share of."""
    n = 8192 if device.type == "cuda" else 1024
    # Not from the default generator: that one belongs to the run, and a resumed run would differ.
    g = torch.Generator(device).manual_seed(0)
    a = torch.randn(n, n, device=device, generator=g).to(dtype or torch.float32)
    best = float("inf")
    for _ in range(6):
        _wait(device)
        start = time.perf_counter()
        a @ a
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def describe(device: torch.device) -> dict[str, Any]:
    """Facts about the device for environment.json."""
    facts: dict[str, Any] = {"device": device.type, "n_threads": torch.get_num_threads()}
    if device.type != "cuda":
        return {**facts, "device_name": cpu_model()}
    properties = torch.cuda.get_device_properties(device)
    return {
        **facts,
        "device_name": properties.name,
        "device_memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cuda_devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
