"""Gated DeltaNet on a CPU: our chunked form beside transformers' plain PyTorch one, and attention.

    python benchmarks/gated_delta_rule.py [--repeats 9]

One process, one thread, the contenders in turn; processor time, medians, forward and backward.
`core` is the delta rule with the length normalisation of q and k; `layer` adds projections, short
convolution and gated norm: ours, and transformers' Qwen3NextGatedDeltaNet. 256 wide, 4 heads of 64.
The second table holds 4,096 tokens against the length they are cut into.

Findings, torch 2.13, transformers 5.23, one AVX-512 core of a busy shared machine (take the ratios;
they moved between runs). Core: 1.7-2.1 x at 256, 1.8-2.2 x at 1024, 3.6-4.2 x at 4096. Layer:
1.4-1.8 x (the low end while other work ran), 1.9-2.0 x, 2.1-2.7 x; about 50 of its 110 ms at
8 x 256 are projections, the same for both. Other ways to write the core, ms at the three shapes:
    all chunks at once, much kept for backward (transformers 91, 119, 396):       63, 70, 174
    the same in blocks of 32 chunks x heads:                                      46, 60, 131
    blocks, little kept, the rest made again, chunks of 64 (99, 127, 458):        52, 68, 103
    the same, chunks of 32 (used for key widths up to 64):                        46, 58, 110
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers.models.qwen3_next import modeling_qwen3_next as stock
from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig

from mixlab.nn.sequence_mixers.gated_deltanet import GatedDeltaNetConfig
from mixlab.ops.attention import attention
from mixlab.ops.gated_delta_rule import gated_delta_rule

D_MODEL, N_HEADS, HEAD_DIM = 256, 4, 64
SHAPES = [(8, 256), (2, 1024), (1, 4096)]  # batch x length


def medians_ms(contenders: list[Callable[[], None]], repeats: int) -> list[float]:
    """Each contender's median processor time, all of them measured in turn."""
    times: list[list[float]] = [[] for _ in contenders]
    for turn in range(repeats + 2):  # the first two warm up
        for run, taken in zip(contenders, times, strict=True):
            start = time.process_time()
            run()
            if turn > 1:
                taken.append(1e3 * (time.process_time() - start))
    return [statistics.median(taken) for taken in times]


def core_inputs(n_batch: int, n_tokens: int) -> list[torch.Tensor]:
    """q, k, v, log_a, b of the size that a layer at its start makes."""
    g = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, n_batch, n_tokens, N_HEADS, HEAD_DIM, generator=g)
    log_a, b = torch.rand(2, n_batch, n_tokens, N_HEADS, generator=g)
    return [x.clone().requires_grad_() for x in (q, k, v, -0.3 * log_a, b)]


def core_contenders(n_batch: int, n_tokens: int) -> list[Callable[[], None]]:
    q, k, v, log_a, b = core_inputs(n_batch, n_tokens)
    reading = torch.randn(v.shape)

    def ours() -> None:
        out = gated_delta_rule(
            q=q, k=k, v=v, log_a=log_a, b=b, state=None, normalize_qk=True, backend="chunked"
        )
        out.o.backward(reading)

    def theirs() -> None:
        o, _ = stock.torch_chunk_gated_delta_rule(q, k, v, log_a, b, use_qk_l2norm_in_kernel=True)
        o.backward(reading)

    def softmax() -> None:
        attention(q=q, k=k, v=v, scale=HEAD_DIM**-0.5).backward(reading)

    return [ours, theirs, softmax]


def layer_contenders(n_batch: int, n_tokens: int) -> list[Callable[[], None]]:
    torch.manual_seed(0)
    ours = GatedDeltaNetConfig(n_heads=N_HEADS, head_dim=HEAD_DIM).build(D_MODEL)
    config = Qwen3NextConfig(
        hidden_size=D_MODEL, num_hidden_layers=1, layer_types=["linear_attention"],
        linear_num_key_heads=N_HEADS, linear_num_value_heads=N_HEADS,
        linear_key_head_dim=HEAD_DIM, linear_value_head_dim=HEAD_DIM,
    )  # fmt: skip
    theirs = stock.Qwen3NextGatedDeltaNet(config, layer_idx=0)
    x = torch.randn(n_batch, n_tokens, D_MODEL, requires_grad=True)
    reading = torch.randn(n_batch, n_tokens, D_MODEL)
    return [lambda: ours(x).y.backward(reading), lambda: theirs(x).backward(reading)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread, float32, ms forward + backward, medians")
    print("batch x length   core: ours  transformers  ratio   layer: ours  transformers  ratio")
    for n_batch, n_tokens in SHAPES:
        core = medians_ms(core_contenders(n_batch, n_tokens)[:2], repeats)
        layer = medians_ms(layer_contenders(n_batch, n_tokens), repeats)
        cells = [f"{a:10.1f}  {b:12.1f}  {b / a:5.2f}" for a, b in (core, layer)]
        print(f"{n_batch:5d} x {n_tokens:<6d} {cells[0]}   {cells[1]}")
    print("\n4,096 tokens in sequences of   gated delta rule   softmax attention")
    for n_tokens in (256, 512, 1024, 2048, 4096):
        rule, _, softmax = core_contenders(4096 // n_tokens, n_tokens)
        both = medians_ms([rule, softmax], max(3, repeats // 2))
        print(f"{n_tokens:28d} {both[0]:18.1f} {both[1]:19.1f}")


if __name__ == "__main__":
    main()
