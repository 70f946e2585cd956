"""The gated delta rule by every backend that can run here: time per layer, errors, first use.

    python benchmarks/delta_rule_backends.py --heads 6 --width 128
    python benchmarks/delta_rule_backends.py --heads 12 --width 256 --documents 300
    python benchmarks/delta_rule_backends.py --rows 1 --tokens 65536

Forward and backward are timed apart, medians of `--repeats`; `first use` is what compiling and
tuning cost in this process, short where compiled kernels were kept from before. Errors are of the
output and of the worst gradient, relative to float64, on two rows of up to 257 tokens.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor

from mixlab.ops.gated_delta_rule import gated_delta_rule
from mixlab.ops.gated_delta_rule.kernels import obstacle
from mixlab.ops.packing import Packing

NAMES = ("q", "k", "v", "log_a", "b")


def make_inputs(rows: int, tokens: int, heads: int, width: int, device: torch.device) -> dict:
    g = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, rows, tokens, heads, width, generator=g)
    log_a, b = torch.rand(2, rows, tokens, heads, generator=g)
    low = [x.to(device, torch.bfloat16) for x in (q, k, v)]
    return dict(zip(NAMES, (*low, -(log_a.to(device) ** 4), b.to(device)), strict=True))


def make_packing(rows: int, tokens: int, mean: int, device: torch.device) -> Packing:
    """Rows packed with documents of geometric length."""
    g = torch.Generator().manual_seed(1)
    starts = torch.rand(rows, tokens, generator=g) < 1 / mean
    return Packing(starts.cumsum(1, dtype=torch.int32)).to(device)


def run(inputs: dict[str, Tensor], packing: Packing | None, backend: str) -> Tensor:
    return gated_delta_rule(
        **inputs, state=None, packing=packing, normalize_qk=True, final_state=False, backend=backend
    ).o


def seconds(call, device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def time_backend(
    inputs: dict[str, Tensor], packing: Packing | None, backend: str, repeats: int
) -> tuple[float, float, float]:
    """Seconds of the first use, and medians of forward and backward."""
    device = inputs["q"].device
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    reading = torch.randn_like(inputs["v"])

    def both() -> None:
        torch.autograd.grad(run(leaves, packing, backend), list(leaves.values()), reading)

    first = seconds(both, device)
    both()
    forwards, whole = [], []
    for _ in range(repeats):
        with torch.no_grad():
            forwards.append(seconds(lambda: run(leaves, packing, backend), device))
        whole.append(seconds(both, device))
    forward = statistics.median(forwards)
    return first, forward, statistics.median(whole) - forward


def errors(inputs: dict[str, Tensor], packing: Packing | None, backend: str) -> tuple[float, float]:
    """Of the output, and the largest of the gradients, against the matrix form in float64."""
    g = torch.Generator().manual_seed(2)
    reading = torch.randn(inputs["v"].shape, generator=g).to(inputs["v"])
    found = []
    for name, wide in ((backend, False), ("chunked", True)):
        leaves = {
            n: (x.double() if wide else x).clone().requires_grad_() for n, x in inputs.items()
        }
        o = run(leaves, packing, name)
        grads = torch.autograd.grad(o, list(leaves.values()), reading.to(o.dtype))
        found.append([x.double() for x in (o.detach(), *grads)])
    relative = [((a - b).norm() / b.norm()).item() for a, b in zip(*found, strict=True)]
    return relative[0], max(relative[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=1024, help="of a row")
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--width", type=int, default=128, help="of keys and values of a head")
    parser.add_argument("--documents", type=int, help="mean tokens of packed documents")
    parser.add_argument("--backends", nargs="*", default=["chunked", "triton", "fla", "flash_qla"])
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{device.type}: {args.rows} x {args.tokens} tokens, {args.heads} heads of {args.width}")
    print("| backend | forward ms | backward ms | first use s | error of o | of gradients |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for backend in args.backends:
        reason = None if backend == "chunked" else obstacle(
            backend, device, torch.bfloat16, args.width, args.width
        )  # fmt: skip
        if reason is not None:
            print(f"| {backend} | {reason} | | | | |")
            continue
        packed = args.documents is not None
        inputs = make_inputs(args.rows, args.tokens, args.heads, args.width, device)
        packing = make_packing(args.rows, args.tokens, args.documents, device) if packed else None
        first, forward, backward = time_backend(inputs, packing, backend, args.repeats)
        few = make_inputs(2, min(args.tokens, 257), args.heads, args.width, device)
        packing = make_packing(2, few["q"].shape[1], 40, device) if packed else None
        o, worst = errors(few, packing, backend)
        print(
            f"| {backend} | {1e3 * forward:.3f} | {1e3 * backward:.3f} | {first:.1f} | {o:.1e} "
            f"| {worst:.1e} |"
        )


if __name__ == "__main__":
    main()
