"""What a model costs, by formula, before it is built.

Tests hold every figure against the built module. FLOPs count the matrix products (2 per
multiply-add), the backward pass twice the forward; norms, softmax, gates and the embedding lookup
are left out, as is customary.
"""

from dataclasses import dataclass
from typing import NamedTuple

from mixlab.nn.language_model import LanguageModelConfig
from mixlab.nn.recursion.looped import LoopedConfig


@dataclass(frozen=True)
class LayerBudget:
    """One layer's share; of a layer that is looped, parameters once, FLOPs and state per loop."""

    index: int
    block: str
    sequence_mixer: str
    channel_mixer: str
    n_params: int
    n_active_params: int
    forward_flops_per_token: float
    state_bytes: int  # of one sequence of max_seq_len tokens, in bfloat16


@dataclass(frozen=True)
class Budget:
    """A whole model."""

    n_params: int  # trainable numbers; a tied head counts once
    n_active_params: int  # those that one token uses
    n_embedding_params: int  # embedding and untied head
    train_flops_per_token: float  # forward and backward, averaged over a sequence of seq_len
    forward_flops_per_token: float
    layers: list[LayerBudget]

    @property
    def n_non_embedding_params(self) -> int:
        return self.n_params - self.n_embedding_params


@dataclass(frozen=True)
class Runs:
    """How often a part of the model runs per token."""

    at_inference: float = 1.0  # at the depth that the model was trained for
    forward: float = 1.0  # in training, a mean over updates
    with_gradient: float = 1.0  # of these, those that have a backward pass


class LoopRuns(NamedTuple):
    """Of the parts of a looped model, ramps being over."""

    core: Runs
    entry: Runs  # of a loop: what joins input and state
    coda: Runs  # stands before every exit that is read
    head: Runs


def loop_runs(cfg: LoopedConfig) -> LoopRuns:
    """Means over the depths that training draws."""
    means = [[0.0, 0.0] for _ in LoopRuns._fields]
    n_unread = 1 if cfg.state_init == "input" else 0  # the first loop has no entry
    has_gate = cfg.halting.kind == "gate"
    for steps, chance in cfg.depth.chances().items():
        n_loops = steps * cfg.loops_per_step
        n_kept = min(n_loops, cfg.bp_max_loops or n_loops)
        n_exits = steps - (n_loops - n_kept) // cfg.loops_per_step if cfg.exit_loss_weight else 1
        counts = (
            (n_loops, n_kept),
            (n_loops - n_unread, min(n_kept, n_loops - n_unread)),
            (steps if has_gate else n_exits, n_exits),
            (n_exits + (steps if has_gate else 0), n_exits),  # the gate's target is scored apart
        )
        for mean, count in zip(means, counts, strict=True):
            mean[0] += chance * count[0]
            mean[1] += chance * count[1]
    loops = float(cfg.depth.trained_steps * cfg.loops_per_step)
    at_inference = (loops, loops - n_unread, 1.0, 1.0)
    return LoopRuns(*(Runs(n, *mean) for n, mean in zip(at_inference, means, strict=True)))


def layer_runs(cfg: LanguageModelConfig) -> list[Runs]:
    """Of every layer."""
    if cfg.recursion is None:
        return [Runs()] * cfg.n_layers
    parts, runs = cfg.recursion, loop_runs(cfg.recursion)
    core, coda = [runs.core] * parts.core_layers, [runs.coda] * parts.coda_layers
    return [Runs()] * parts.prelude_layers + core + coda


def model_budget(cfg: LanguageModelConfig, seq_len: int) -> Budget:
    """Count parameters and FLOPs of `cfg` when trained on sequences of `seq_len` tokens.

    Of a looped model parameters count once; FLOPs are those of the mean depth in training, and
    forward FLOPs and decoding state those of the depth that it was trained for, every token taking
    all steps.
    """
    layers, train = [], 0.0
    for i, (name, runs) in enumerate(zip(cfg.layers(), layer_runs(cfg), strict=True)):
        block = cfg.blocks[name]
        flops = block.flops_per_token(cfg.d_model, seq_len)
        state = block.sequence_mixer.state_bytes(cfg.d_model, cfg.max_seq_len, 2)
        train += flops * (runs.forward + 2 * runs.with_gradient)
        layers.append(
            LayerBudget(
                index=i,
                block=name,
                sequence_mixer=block.sequence_mixer.kind,
                channel_mixer=block.channel_mixer.kind,
                n_params=block.n_params(cfg.d_model),
                n_active_params=block.n_active_params(cfg.d_model),
                forward_flops_per_token=runs.at_inference * flops,
                state_bytes=round(runs.at_inference) * state,
            )
        )
    table = cfg.vocab_size * cfg.d_model
    embedding = table if cfg.tie_embeddings else 2 * table
    forward = sum(layer.forward_flops_per_token for layer in layers) + 2 * table  # + the head
    head, besides = Runs(), embedding + cfg.d_model
    if cfg.recursion is not None:
        runs = loop_runs(cfg.recursion)
        head, entry = runs.head, cfg.recursion.flops_of_entry(cfg.d_model)
        forward += entry * runs.entry.at_inference
        train += entry * (runs.entry.forward + 2 * runs.entry.with_gradient)
        besides += cfg.recursion.n_params(cfg.d_model)
    train += 2 * table * (head.forward + 2 * head.with_gradient)
    return Budget(
        n_params=sum(layer.n_params for layer in layers) + besides,
        n_active_params=sum(layer.n_active_params for layer in layers) + besides,
        n_embedding_params=embedding,
        train_flops_per_token=train,
        forward_flops_per_token=forward,
        layers=layers,
    )


def state_bytes(cfg: LanguageModelConfig, n_tokens: int, dtype_bytes: int) -> int:
    """Bytes of one sequence's decoding state after `n_tokens` tokens, over all layers.

    A looped layer keeps a state per loop. Where tokens may leave early, two more vectors per token
    are kept, and an exit rule that reads outputs keeps a coda state per step; that is left out.
    """
    return sum(
        cfg.blocks[name].sequence_mixer.state_bytes(cfg.d_model, n_tokens, dtype_bytes)
        * round(runs.at_inference)
        for name, runs in zip(cfg.layers(), layer_runs(cfg), strict=True)
    )


def training_memory_bytes(
    cfg: LanguageModelConfig, *, micro_batch_tokens: int, optimizer_bytes_per_param: int
) -> int:
    """An estimate: weights, gradients, optimizer state, and activations kept for the backward.

    Activations are taken as 34 numbers of 2 bytes per token, layer and unit of width, the usual
    count for a pre-norm block without recomputation [arXiv:2205.05198], plus one chunk of logits.
    """
    n_params = model_budget(cfg, 1).n_params
    static = n_params * (4 + 4 + optimizer_bytes_per_param)
    n_runs = sum(runs.with_gradient for runs in layer_runs(cfg))  # a looped layer keeps each loop
    activations = round(34 * 2 * micro_batch_tokens * n_runs * cfg.d_model)
    logits = min(micro_batch_tokens * cfg.vocab_size, 2**23) * 8
    return static + activations + logits
