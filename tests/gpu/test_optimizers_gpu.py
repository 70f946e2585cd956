"""Optimizers on a GPU: nothing waits for the device, and the result is that of the CPU."""

import pytest
import torch
from torch import nn

from mixlab.training.ema import Ema
from mixlab.training.optimizers import OPTIMIZERS, AdamWConfig, MuonConfig, OptimizerConfig

pytestmark = pytest.mark.gpu

SHAPES = {
    "embed_tokens.weight": (64, 32),
    "blocks.0.q_proj.weight": (32, 32),
    "blocks.1.q_proj.weight": (32, 32),
    "blocks.1.up_proj.weight": (48, 32),
    "blocks.1.experts.gate_proj": (3, 48, 32),
    "norm.weight": (32,),
}


def parameters(device: str) -> dict[str, nn.Parameter]:
    gen = torch.Generator().manual_seed(0)
    params = {n: nn.Parameter(torch.randn(s, generator=gen).to(device)) for n, s in SHAPES.items()}
    for p in params.values():
        p.grad = torch.randn(p.shape, generator=gen).to(device)
    return params


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_an_update_never_waits_for_the_device(kind: str) -> None:
    params = parameters("cuda")
    optimizer, ema = OPTIMIZERS[kind]().build(params.items()), Ema(params.items(), 0.9)
    optimizer.step(1.0)  # loads the kernels, which may wait
    ema.update(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step(0.5)
        ema.update(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("cfg", [AdamWConfig(lr=0.01), MuonConfig(ns_dtype="float32", lr=0.01)])
def test_the_gpu_agrees_with_the_cpu(cfg: OptimizerConfig) -> None:
    on_cpu, on_gpu = parameters("cpu"), parameters("cuda")
    for params in (on_cpu, on_gpu):
        optimizer = cfg.build(params.items())
        for _ in range(3):
            optimizer.step(1.0)
    for name, p in on_cpu.items():
        # float32 on both sides; the iteration of Muon amplifies rounding (2**-24) some hundredfold
        torch.testing.assert_close(on_gpu[name].cpu(), p, rtol=1e-4, atol=1e-5)
