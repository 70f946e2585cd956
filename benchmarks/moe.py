"""Mixture of experts on a CPU: our backends against transformers' eager experts.

    python benchmarks/moe.py [--threads 1] [--rounds 9]

Forward and backward of one whole layer, router included, same float32 weights and tokens; the
contenders take turns in one process, so a slow moment of the machine hits all of them; medians.
`products` is the time of the matrix products alone, below which no formulation can go.

One run (torch 2.13, one thread of an AMD EPYC shared with other work, medians of 7, ms):

    tokens width experts top-k d_expert |  eager   loop  grouped  products | eager / grouped
       128   512       4     2     2048 |  184.8  171.4     92.8      78.8 | 1.99
       256   512       4     2     2048 |  228.3  208.9    150.0     126.3 | 1.52
       512   512       4     2     2048 |  379.9  340.6    312.3     261.4 | 1.22
      2048   512       4     2     2048 | 1958.4 1795.9   1815.0    1681.1 | 1.08
       512   512      64     8      128 | 1900.8 1958.0    171.7      74.6 | 11.07
      2048   512      64     8      128 | 2608.6 2527.9    756.0     420.8 | 3.45
      2048   256      16     4      256 |  336.5  343.9    280.1     208.0 | 1.20

What eager loses is a gradient of the size of all experts for every expert, so the gain grows with
the number of experts and shrinks with the tokens of each. With few experts and hundreds of tokens
for each, the products are nearly all of the time of either, and 1.5 is out of reach for anyone.

Tried and not kept, as ratios over eager in earlier runs of the shapes (512, 4 experts), (2048, 4
experts), (512, 64 experts), (2048, 64 experts): PyTorch's grouped_mm with the activations left to
autograd 1.41, 1.01, 13.3, 4.2, but it refuses float64 and widths off 16 bytes; one product per
slice, likewise with autograd between, 1.24, 0.98, 18.1, 4.2 and 1.4 times slower than now at the
last; slices cut into blocks of 128 to 1024 rows, at best as fast as whole slices; oneDNN's product
in place of torch.mm, no faster.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from mixlab.nn.channel_mixers.moe import MoEConfig

# tokens, width, experts, active, expert width
SHAPES = [
    (128, 512, 4, 2, 2048),
    (256, 512, 4, 2, 2048),
    (512, 512, 4, 2, 2048),
    (2048, 512, 4, 2, 2048),
    (512, 512, 64, 8, 128),
    (2048, 512, 64, 8, 128),
    (2048, 256, 16, 4, 256),
]


def build(
    d_model: int, n_experts: int, n_active: int, d_expert: int
) -> dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]]:
    """The contenders, with equal weights."""
    config = Qwen3MoeConfig(
        hidden_size=d_model, num_experts=n_experts, num_experts_per_tok=n_active,
        moe_intermediate_size=d_expert, norm_topk_prob=True,
    )  # fmt: skip
    config._experts_implementation = "eager"
    layers: dict[str, nn.Module] = {"transformers eager": Qwen3MoeSparseMoeBlock(config)}
    for backend in ("loop", "grouped"):
        layers[backend] = MoEConfig(
            n_experts=n_experts, n_active_experts=n_active, d_expert=d_expert, backend=backend,
            aux_loss_weight=0.0,
        ).build(d_model)  # fmt: skip
    for layer in layers.values():
        layer.load_state_dict(layers["grouped"].state_dict())
    return {
        name: (layer, layer if name.startswith("transformers") else lambda x, f=layer: f(x).y)
        for name, layer in layers.items()
    }


def matrix_products(shape: tuple[int, int, int, int, int]) -> Callable[[], None]:
    """The layer's six products per expert and nothing else, at even load: what no code can beat."""
    n_tokens, d_model, n_experts, n_active, d_expert = shape
    rows = n_tokens * n_active // n_experts
    x, h, a = (torch.randn(rows, width) for width in (d_model, 2 * d_expert, d_expert))
    up, down = torch.randn(2 * d_expert, d_model), torch.randn(d_model, d_expert)
    y = torch.empty(rows, d_model)

    def run() -> None:
        for _ in range(n_experts):
            torch.mm(x, up.T, out=h)
            torch.mm(a, down.T, out=y)
            torch.mm(y, down, out=a)
            torch.mm(y.T, a, out=down)
            torch.mm(h, up, out=y)
            torch.mm(h.T, x, out=up)

    return run


def measure(shape: tuple[int, int, int, int, int], rounds: int) -> dict[str, float]:
    """Median seconds of forward and backward, by contender."""
    n_tokens, d_model, *rest = shape
    contenders = build(d_model, *rest)
    x = torch.randn(1, n_tokens, d_model, requires_grad=True)
    direction = torch.randn(1, n_tokens, d_model)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    times["products"] = []
    products = matrix_products(shape)
    outputs = {}
    for _ in range(rounds + 1):
        start = time.perf_counter()
        products()
        times["products"].append(time.perf_counter() - start)
        for name, (layer, run) in contenders.items():
            layer.zero_grad(set_to_none=True)
            x.grad = None
            start = time.perf_counter()
            y = run(x)
            y.backward(direction)
            times[name].append(time.perf_counter() - start)
            outputs[name] = (y.detach(), x.grad)
    for name, results in outputs.items():
        for got, want in zip(results, outputs["transformers eager"], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5, msg=name)
    return {name: statistics.median(t[1:]) for name, t in times.items()}  # the first warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {args.threads} thread(s), median of {args.rounds}")
    print(
        "tokens width experts active d_expert | eager ms | loop ms | grouped ms | eager / grouped"
    )
    for shape in SHAPES:
        seconds = measure(shape, args.rounds)
        eager, loop, grouped, products = (1e3 * s for s in seconds.values())
        print(
            "{:6d} {:5d} {:7d} {:5d} {:8d} | ".format(*shape)
            + f"{eager:8.1f} {loop:8.1f} {grouped:11.1f} {products:12.1f} | {eager / grouped:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
