"""Training speed on a CPU: mixlab against transformers' Llama, same shape, in one process.

    python benchmarks/cpu_training.py [--precision bf16|fp32] [--threads N] [--rounds N]

Both train 6 layers of width 256 with a vocabulary of 8,192 on the same batches of 16 x 256 random
tokens, with fused AdamW and gradient clipping, in turn, so that a busy machine slows both. Printed
are the medians in tokens/s and the ratio ours / theirs. `packed` is ours with three documents per
row, masked from each other: what a run really does.
"""

import argparse
import statistics
import time
from collections.abc import Callable

from mixlab.jobs.process import tune_process

tune_process()

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mixlab.core.config import decode
from mixlab.data.batch import Batch
from mixlab.nn.language_model import LanguageModelConfig, build_model
from mixlab.training.language_modelling import LanguageModelling, autocast
from mixlab.training.objective import update as make_update
from mixlab.training.optimizers import AdamWConfig

VOCAB, WIDTH, LAYERS, HEADS, D_FF, ROWS, LENGTH = 8192, 256, 6, 4, 704, 16, 256


class Repeat:
    """A loader of one batch."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def batch(self, position: int, n: int) -> Batch:
        return self._batch


def ours(batch: Batch, compute_dtype: torch.dtype | None, compiled: bool) -> Callable[[], None]:
    """A function that makes one update of our model."""
    tree = {
        "vocab_size": VOCAB,
        "d_model": WIDTH,
        "n_layers": LAYERS,
        "blocks": {
            "full": {
                "sequence_mixer": {"kind": "attention", "n_heads": HEADS, "head_dim": 64},
                "channel_mixer": {"kind": "mlp", "d_ff": D_FF},
            }
        },
    }
    model = build_model(decode(LanguageModelConfig, tree), seed=0)
    if compiled:
        for block in model.blocks:
            block.compile()
    optimizer = AdamWConfig().build(model.named_parameters())

    objective = LanguageModelling(
        model, Repeat(batch), batch_size=ROWS, compute_dtype=compute_dtype
    )

    def update() -> None:
        make_update(objective, optimizer, 0, lr_factor=1.0, max_grad_norm=1.0)

    return update


def theirs(batch: Batch, compute_dtype: torch.dtype | None) -> Callable[[], None]:
    """A function that makes one update of transformers' Llama of the same shape."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=D_FF,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)

    def update() -> None:
        with autocast(torch.device("cpu"), compute_dtype):
            # It shifts the labels itself, which costs it one target in LENGTH.
            loss = model(input_ids=batch.tokens, labels=batch.tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="add ours under torch.compile")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    compute_dtype = torch.bfloat16 if args.precision == "bf16" else None

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCAB, (ROWS, LENGTH + 1), generator=generator)
    one = torch.zeros(ROWS, LENGTH, dtype=torch.int32)
    three = one.clone()
    three[:, LENGTH // 3 :] += 1
    three[:, 2 * LENGTH // 3 :] += 1
    plain = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), one)
    updates = {
        "transformers Llama": theirs(plain, compute_dtype),
        "mixlab": ours(plain, compute_dtype, compiled=False),
        "mixlab, packed": ours(plain._replace(segments=three), compute_dtype, compiled=False),
    }
    if args.compile:
        updates["mixlab, compiled"] = ours(plain, compute_dtype, compiled=True)
    times: dict[str, list[float]] = {name: [] for name in updates}
    for name, update in updates.items():
        start = time.perf_counter()
        update()  # the first one allocates, and compiles
        print(f"first update of {name}: {time.perf_counter() - start:.1f} s", flush=True)
    for _ in range(args.rounds):
        for name, update in updates.items():
            start = time.perf_counter()
            update()
            times[name].append(time.perf_counter() - start)
    base = statistics.median(times["transformers Llama"])
    print(f"{args.precision}, {args.threads} threads, {args.rounds} rounds in turn")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        ratios = [b / s for b, s in zip(times["transformers Llama"], seconds, strict=True)]
        print(
            f"{name:20}  {ROWS * LENGTH / median:8,.0f} tokens/s  ratio {base / median:.2f}"
            f"  (rounds {min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
