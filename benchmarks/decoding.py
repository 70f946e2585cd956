"""Decoding with a state against reading everything again, and training cost against length; CPU.

    python benchmarks/decoding.py [--tokens 24]

Decoding: a model of 4 layers, 256 wide, float32, random weights, reads a context and then writes
one token after the other; tokens/s from the median time of a token. `re-forward` computes the whole
context for every token, as a model without a state has to. `state` is the size of one sequence's
decoding state, counted from the tensors and held to the formula of the config.

Training: forward and backward of the same 4 layers over the same number of tokens, cut into longer
and longer sequences; beside it the core alone (softmax attention, gated delta rule) for one
sequence, with the exponent p of time ~ T^p between neighbouring lengths: 2 for attention and 1 for
the delta rule, once T is large.

One run (torch 2.13, one thread of an AMD EPYC that was busy with other work, which slows every
figure by up to half; 90 s of processor time):

    mixer           context |  state tok/s  re-forward tok/s   ratio |     state    formula
    attention           128 |          195              51.7     3.8 |  1024 KiB   1024 KiB
    MLA, absorbed       128 |          187              45.7     4.1 |   192 KiB    192 KiB
    MLA, expanded       128 |          179              40.4     4.4 |   192 KiB    192 KiB
    Gated DeltaNet      128 |          152              30.6     5.0 |   292 KiB    292 KiB
    attention           512 |          124              11.3    11.0 |  4096 KiB   4096 KiB
    MLA, absorbed       512 |          139              11.9    11.6 |   768 KiB    768 KiB
    MLA, expanded       512 |           97              12.9     7.5 |   768 KiB    768 KiB
    Gated DeltaNet      512 |          120               9.3    12.9 |   292 KiB    292 KiB
    attention          2048 |           81               2.1    39.0 | 16384 KiB  16384 KiB
    MLA, absorbed      2048 |          118               2.2    53.5 |  3072 KiB   3072 KiB
    MLA, expanded      2048 |           42               2.2    19.1 |  3072 KiB   3072 KiB
    Gated DeltaNet     2048 |          125               2.3    53.6 |   292 KiB    292 KiB

    mixer          length | training, ms per 1,000 tokens | core, ms per sequence      p
    attention         256 |                         419.3 |                   4.0
    attention        1024 |                         487.0 |                  41.9   1.70
    attention        4096 |                         847.1 |                 572.5   1.89
    attention        8192 |                               |                2212.7   1.95
    Gated DeltaNet    256 |                         549.0 |                   8.8
    Gated DeltaNet   1024 |                         463.1 |                  27.6   0.82
    Gated DeltaNet   4096 |                         501.1 |                 136.8   1.15
    Gated DeltaNet   8192 |                               |                 274.3   1.00

At 2,048 tokens a state is worth a factor of 20 to 50, and the factor grows with the context. A
Gated DeltaNet token costs the same at any context, up to noise; an absorbed MLA token nearly so,
as its latents are few; attention copies and reads 16 MiB for each. Absorbing is what makes a small
latent cheap: expanding it costs nearly 3 times as much by 2,048 tokens.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mixlab.core.config import decode
from mixlab.nn.language_model import LanguageModel, LanguageModelConfig, build_model
from mixlab.ops.attention import attention
from mixlab.ops.gated_delta_rule import gated_delta_rule

D_MODEL, N_LAYERS, N_HEADS, HEAD_DIM, VOCAB = 256, 4, 4, 64, 1024
CONTEXTS = [128, 512, 2048]
LENGTHS = [256, 1024, 4096]
STEP_TOKENS = 4096  # of a training step, in sequences of each length
CORE_LENGTHS = [*LENGTHS, 8192]

LATENT = {
    "kind": "mla", "n_heads": N_HEADS, "kv_lora_rank": 64, "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32, "v_head_dim": 64,
}  # fmt: skip
MIXERS: dict[str, dict[str, Any]] = {
    "attention": {"kind": "attention", "n_heads": N_HEADS, "head_dim": HEAD_DIM},
    "MLA, absorbed": LATENT | {"decode_backend": "absorbed"},
    "MLA, expanded": LATENT | {"decode_backend": "expanded"},
    "Gated DeltaNet": {"kind": "gated_deltanet", "n_heads": N_HEADS, "head_dim": HEAD_DIM},
}


def build(mixer: dict[str, Any]) -> LanguageModel:
    block = {"sequence_mixer": mixer, "channel_mixer": {"kind": "mlp", "d_ff": 3 * D_MODEL}}
    tree = {
        "vocab_size": VOCAB, "d_model": D_MODEL, "n_layers": N_LAYERS, "max_seq_len": 8192,
        "blocks": {"only": block},
    }  # fmt: skip
    return build_model(decode(LanguageModelConfig, tree), seed=0)


def random_tokens(n_batch: int, n_tokens: int) -> Tensor:
    return torch.randint(VOCAB, (n_batch, n_tokens), generator=torch.Generator().manual_seed(0))


def medians_ms(contenders: list[Callable[[], Any]], repeats: int) -> list[float]:
    """Each contender's median processor time, all of them called in turn; the first turn warms up.

    Processor time of one thread leaves out the moments that a shared machine gives to others.
    """
    times: list[list[float]] = [[] for _ in contenders]
    for turn in range(repeats + 1):
        for run, taken in zip(contenders, times, strict=True):
            start = time.process_time()
            run()
            if turn:
                taken.append(1e3 * (time.process_time() - start))
    return [statistics.median(taken) for taken in times]


# --- decoding -----------------------------------------------------------------------------------


def stepper(model: LanguageModel, n_context: int) -> tuple[Callable[[], None], int]:
    """A function that writes one more token after the context; bytes of the state before that."""
    state = model(random_tokens(1, n_context), model.initial_state(1), last_only=True).state
    n_bytes = sum(t.numel() * t.element_size() for t in tensors(state))
    token = random_tokens(1, 1)

    def step() -> None:
        nonlocal state
        state = model(token, state, last_only=True).state

    return step, n_bytes


def reader(model: LanguageModel, n_context: int) -> Callable[[], Any]:
    """A function that computes the next token's logits from the whole context."""
    tokens = random_tokens(1, n_context + 1)
    return lambda: model(tokens, last_only=True)


def tensors(node: Any) -> Iterator[Tensor]:
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, list | tuple):
        for part in node:
            yield from tensors(part)


def formula_bytes(model: LanguageModel, n_tokens: int) -> int:
    cfg = model.cfg
    mixers = [cfg.blocks[name].sequence_mixer for name in cfg.layers()]
    return sum(mixer.state_bytes(cfg.d_model, n_tokens, 4) for mixer in mixers)


@torch.inference_mode()
def print_decoding(n_new: int) -> None:
    models = {name: build(mixer).eval() for name, mixer in MIXERS.items()}
    print("mixer           context |  state tok/s  re-forward tok/s   ratio |     state    formula")
    for n_context in CONTEXTS:
        steppers = [stepper(model, n_context) for model in models.values()]
        step_ms = medians_ms([step for step, _ in steppers], n_new)
        whole_ms = medians_ms([reader(model, n_context) for model in models.values()], 3)
        rows = zip(models.items(), steppers, step_ms, whole_ms, strict=True)
        for (name, model), (_, n_bytes), ms, whole in rows:
            formula = formula_bytes(model, n_context)
            assert n_bytes == formula, f"{name}: state of {n_bytes} bytes, formula {formula}"
            print(
                f"{name:15s} {n_context:7d} | {1e3 / ms:12.0f} {1e3 / whole:17.1f}"
                f" {whole / ms:7.1f} | {n_bytes / 1024:5.0f} KiB  {formula / 1024:5.0f} KiB",
                flush=True,
            )


# --- cost against length ------------------------------------------------------------------------


def training_step(model: LanguageModel, n_tokens: int) -> Callable[[], None]:
    tokens = random_tokens(STEP_TOKENS // n_tokens, n_tokens)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model.trunk(tokens).h.sum().backward()

    return step


def core(kind: str, n_tokens: int) -> Callable[[], None]:
    """Forward and backward of one layer's core on one sequence."""
    g = torch.Generator().manual_seed(0)
    reading, *qkv = torch.randn(4, 1, n_tokens, N_HEADS, HEAD_DIM, generator=g)
    gates = torch.rand(2, 1, n_tokens, N_HEADS, generator=g)
    q, k, v, log_a, b = (x.clone().requires_grad_() for x in (*qkv, -0.3 * gates[0], gates[1]))

    def run() -> None:
        if kind == "attention":
            o = attention(q=q, k=k, v=v, scale=HEAD_DIM**-0.5)
        else:
            o = gated_delta_rule(
                q=q, k=k, v=v, log_a=log_a, b=b, state=None, normalize_qk=True, backend="chunked"
            ).o
        o.backward(reading)

    return run


def print_training() -> None:
    names = ["attention", "Gated DeltaNet"]
    models = [build(MIXERS[name]) for name in names]
    steps = [medians_ms([training_step(m, n) for m in models], 3) for n in LENGTHS]
    cores = [medians_ms([core(MIXERS[x]["kind"], n) for x in names], 5) for n in CORE_LENGTHS]
    print("\nmixer          length | training, ms per 1,000 tokens | core, ms per sequence      p")
    for i, name in enumerate(names):
        for j, n_tokens in enumerate(CORE_LENGTHS):
            step = f"{1e3 * steps[j][i] / STEP_TOKENS:.1f}" if j < len(steps) else ""
            p = f"{exponent(j, [row[i] for row in cores]):.2f}" if j else ""
            print(f"{name:14s} {n_tokens:6d} | {step:>29s} | {cores[j][i]:21.1f} {p:>6s}")


def exponent(j: int, times: list[float]) -> float:
    """p of time ~ T^p between the length `j` and the one before it."""
    growth = CORE_LENGTHS[j] / CORE_LENGTHS[j - 1]
    return math.log(times[j] / times[j - 1]) / math.log(growth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=24, help="tokens written per measurement")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread, float32, processor time, medians")
    print_decoding(args.tokens)
    print_training()


if __name__ == "__main__":
    main()
