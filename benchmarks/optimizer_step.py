"""Time one Muon update of mixlab beside `torch.optim.Muon`, in turn, in one process.

    python benchmarks/optimizer_step.py [--threads 1] [--d-model 256] [--layers 6] [--device cpu]

Both update the same hidden matrices of a decoder with grouped heads and SwiGLU; embeddings and
vectors are left out on both sides. Printed are medians in milliseconds and the ratio, above 1
where mixlab is faster.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from mixlab.training.optimizers import MuonConfig


def matrices(d_model: int, n_layers: int, device: str) -> dict[str, nn.Parameter]:
    """The hidden matrices of a decoder: attention with a quarter of the heads for keys, SwiGLU."""
    d_kv, d_ff = d_model // 4, int(d_model * 8 / 3) // 32 * 32
    shapes = {
        "q_proj": (d_model, d_model),
        "k_proj": (d_kv, d_model),
        "v_proj": (d_kv, d_model),
        "o_proj": (d_model, d_model),
        "gate_proj": (d_ff, d_model),
        "up_proj": (d_ff, d_model),
        "down_proj": (d_model, d_ff),
    }
    return {
        f"blocks.{i}.{name}.weight": nn.Parameter(torch.randn(shape, device=device) / shape[1])
        for i in range(n_layers)
        for name, shape in shapes.items()
    }


def timed(update: Callable[[], None], device: str) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    update()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    ours = matrices(args.d_model, args.layers, args.device)
    theirs = {name: nn.Parameter(p.detach().clone()) for name, p in ours.items()}
    for name, p in ours.items():
        p.grad = torch.randn_like(p)
        theirs[name].grad = p.grad.clone()
    updates: dict[str, Callable[[], None]] = {}
    stock = torch.optim.Muon(
        theirs.values(), lr=5e-3, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    updates["torch.optim.Muon"] = lambda: stock.step() and None
    for dtype in ("bfloat16", "float32"):
        optimizer = MuonConfig(ns_dtype=dtype).build(ours.items())
        updates[f"mixlab {dtype}"] = lambda optimizer=optimizer: optimizer.step(1.0)

    times: dict[str, list[float]] = {name: [] for name in updates}
    for repeat in range(args.repeats + 3):
        for name, update in updates.items():
            elapsed_ms = timed(update, args.device)
            if repeat >= 3:  # the first ones build kernels and fill caches
                times[name].append(elapsed_ms)
    medians = {name: statistics.median(values) for name, values in times.items()}
    n_params = sum(p.numel() for p in ours.values())
    print(f"{n_params:,} parameters in {len(ours)} matrices, {args.device}, {args.threads} threads")
    for name, median in medians.items():
        ratio = medians["torch.optim.Muon"] / median
        print(f"{name:18s} {median:8.1f} ms   {ratio:5.2f} x")


if __name__ == "__main__":
    main()
