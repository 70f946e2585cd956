"""What a model costs, by formula, before it is built.

Tests hold every figure against the built module. FLOPs count the matrix products (2 per
multiply-add), the backward pass twice the forward; norms, softmax, gates and the embedding lookup
are left out, as is customary.
"""

from dataclasses import dataclass

from mixlab.nn.language_model import LanguageModelConfig


@dataclass(frozen=True)
class LayerBudget:
    """One layer's share."""

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


def model_budget(cfg: LanguageModelConfig, seq_len: int) -> Budget:
    """Count parameters and FLOPs of `cfg` when trained on sequences of `seq_len` tokens."""
    layers = []
    for i, name in enumerate(cfg.layers()):
        block = cfg.blocks[name]
        layers.append(
            LayerBudget(
                index=i,
                block=name,
                sequence_mixer=block.sequence_mixer.kind,
                channel_mixer=block.channel_mixer.kind,
                n_params=block.n_params(cfg.d_model),
                n_active_params=block.n_active_params(cfg.d_model),
                forward_flops_per_token=block.flops_per_token(cfg.d_model, seq_len),
                state_bytes=block.sequence_mixer.state_bytes(cfg.d_model, cfg.max_seq_len, 2),
            )
        )
    table = cfg.vocab_size * cfg.d_model
    embedding = table if cfg.tie_embeddings else 2 * table
    forward = sum(layer.forward_flops_per_token for layer in layers) + 2 * table  # + the head
    return Budget(
        n_params=sum(layer.n_params for layer in layers) + embedding + cfg.d_model,
        n_active_params=sum(layer.n_active_params for layer in layers) + embedding + cfg.d_model,
        n_embedding_params=embedding,
        train_flops_per_token=3 * forward,
        forward_flops_per_token=forward,
        layers=layers,
    )


def state_bytes(cfg: LanguageModelConfig, n_tokens: int, dtype_bytes: int) -> int:
    """Bytes of one sequence's decoding state after `n_tokens` tokens, over all layers."""
    return sum(
        cfg.blocks[name].sequence_mixer.state_bytes(cfg.d_model, n_tokens, dtype_bytes)
        for name in cfg.layers()
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
    activations = 34 * 2 * micro_batch_tokens * cfg.n_layers * cfg.d_model
    logits = min(micro_batch_tokens * cfg.vocab_size, 2**23) * 8
    return static + activations + logits
