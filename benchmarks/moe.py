"""Mixture of experts on a CPU: our backends against transformers' eager experts.

    python benchmarks/moe.py [--threads 1] [--rounds 9]

Forward and backward of one whole layer, router included, same float32 weights and tokens; the
contenders take turns in one process, so a slow moment of the machine hits all of them; medians.
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


def measure(shape: tuple[int, int, int, int, int], rounds: int) -> dict[str, float]:
    """Median seconds of forward and backward, by contender."""
    n_tokens, d_model, *rest = shape
    contenders = build(d_model, *rest)
    x = torch.randn(1, n_tokens, d_model, requires_grad=True)
    direction = torch.randn(1, n_tokens, d_model)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    outputs = {}
    for _ in range(rounds + 1):
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
        eager, loop, grouped = (1e3 * s for s in seconds.values())
        print(
            "{:6d} {:5d} {:7d} {:5d} {:8d} | ".format(*shape)
            + f"{eager:8.1f} | {loop:7.1f} | {grouped:10.1f} | {eager / grouped:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
