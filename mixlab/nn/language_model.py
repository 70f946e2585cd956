"""Decoder language model: embedding, a stack of blocks, norm, head.

Shapes: B batch, T tokens, D d_model.
"""

from typing import Any, NamedTuple

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from mixlab.core.config import Config
from mixlab.core.errors import Rule
from mixlab.nn.block import Block, BlockConfig
from mixlab.nn.linear import Embedding, Linear
from mixlab.nn.norm import RMSNorm
from mixlab.nn.pattern import Pattern
from mixlab.nn.recursion.loop_pass import LoopedState, Loops, LoopTrace, Stack
from mixlab.nn.recursion.looped import Looped, LoopedConfig
from mixlab.nn.rotary import RotaryAngles
from mixlab.ops.packing import Packing

MAX_LAYERS = 1000
RESIDUAL_WRITERS = ("o_proj.weight", "down_proj.weight", "experts.down_proj")
"""Endings of the parameters whose output is added to the residual stream."""


class LanguageModelConfig(Config):
    """A decoder: which blocks, in which pattern, how wide and how deep."""

    vocab_size: PositiveInt
    """Rows of the embedding; at least the tokenizer's vocabulary."""
    d_model: PositiveInt
    """Width of the residual stream."""
    n_layers: int = Field(ge=1, le=MAX_LAYERS)
    """Blocks in the stack."""
    blocks: dict[str, BlockConfig] = Field(min_length=1)
    """The kinds of block, by names that `pattern` uses."""
    pattern: Pattern | None = None
    """Which block stands at which layer; may be absent when there is only one kind."""
    recursion: LoopedConfig | None = None
    """Layers that run more than once; absent: each runs once."""
    max_seq_len: PositiveInt = 4096
    """Longest sequence, prompt and answer together, that the model is used for."""
    tie_embeddings: bool = True
    """Use the embedding as the output head."""
    scale_embeddings: bool = False
    """Multiply embeddings by sqrt(d_model), as the original Transformer does."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropped share of the embeddings and of what each mixer adds to the stream."""
    norm_eps: PositiveFloat = 1e-6
    """Epsilon of the norms in the residual stream."""

    @model_validator(mode="after")
    def _fits(self) -> "LanguageModelConfig":
        for name, block in self.blocks.items():
            for part in ("sequence_mixer", "channel_mixer"):
                try:
                    getattr(block, part).check(self.d_model)
                except Rule as rule:
                    path = f"blocks.{name}.{part}.{rule.field}"
                    raise Rule(path, rule.got, rule.expected, rule.fix) from None
        if self.recursion is not None and self.recursion.n_layers != self.n_layers:
            parts = self.recursion
            raise Rule(
                "recursion.core_layers", parts.core_layers,
                f"prelude, core and coda to make n_layers = {self.n_layers} together, but "
                f"{parts.prelude_layers} + {parts.core_layers} + {parts.coda_layers} = "
                f"{parts.n_layers}",
            )  # fmt: skip
        if self.pattern is None:
            if len(self.blocks) > 1:
                raise Rule(
                    "pattern", None, f"a rule that places the blocks {', '.join(self.blocks)}"
                )
            return self
        unknown = sorted(self.pattern.names() - set(self.blocks))
        if unknown:
            raise Rule("pattern", unknown[0], f"a name from blocks: {', '.join(self.blocks)}")
        try:
            used = set(self.layers())
        except Rule as rule:
            path = f"pattern.{rule.field}" if rule.field else "pattern"
            raise Rule(path, rule.got, rule.expected, rule.fix) from None
        unused = sorted(set(self.blocks) - used)
        if unused:
            raise Rule(
                f"blocks.{unused[0]}", "unused",
                f"every block to stand at one of the {self.n_layers} layers",
                "Place it in model.pattern, or leave it out.",
            )  # fmt: skip
        return self

    def windows(self, seq_len: int) -> set[int | None]:
        """The windows of the attention layers, None for those that see rows of `seq_len` whole."""
        mixers = [block.sequence_mixer for block in self.blocks.values()]
        found = [getattr(mixer, "window", None) for mixer in mixers if mixer.reads_both_ways]
        return {None if w is None or w >= seq_len else w for w in found}

    def portable(self) -> "LanguageModelConfig":
        """The same with kernels that run anywhere, see `SequenceMixerConfig.portable`."""
        blocks = {
            name: block.model_copy(update={"sequence_mixer": block.sequence_mixer.portable()})
            for name, block in self.blocks.items()
        }
        return self.model_copy(update={"blocks": blocks})

    def layers(self) -> list[str]:
        """The block name of every layer."""
        if self.pattern is None:
            return list(self.blocks) * self.n_layers
        return self.pattern.expand(self.n_layers)


class Trunk(NamedTuple):
    h: Tensor  # (B, T, D), normed, ready for the head
    state: Any  # per layer, or of a looped model; None if the call was given none
    aux_loss: Tensor | None  # sum over layers, a mean over tokens each
    metrics: dict[str, dict[str, Tensor]]  # layer name -> figures of its channel mixer
    loops: LoopTrace | None = None  # of a looped model


class ModelOutput(NamedTuple):
    logits: Tensor  # (B, T, vocab), or (B, 1, vocab) with last_only
    state: Any
    aux_loss: Tensor | None


class LanguageModel(nn.Module):
    """Tokens in, logits out; the same call trains, prefills and decodes."""

    def __init__(self, cfg: LanguageModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.recomputes = False  # what blocks compute, in the backward pass; saves memory
        self.embed_tokens = Embedding(cfg.vocab_size, cfg.d_model)
        self.dropout = nn.Dropout(cfg.dropout) if cfg.dropout else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(cfg.blocks[name], cfg.d_model, dropout=cfg.dropout, norm_eps=cfg.norm_eps)
            for name in cfg.layers()
        )
        self.recursion: Looped | None = None
        if cfg.recursion is not None:
            self.recursion = Looped(cfg.recursion, cfg.d_model, norm_eps=cfg.norm_eps)
        self.norm = RMSNorm(cfg.d_model, eps=cfg.norm_eps)
        self.lm_head = None if cfg.tie_embeddings else Linear(cfg.d_model, cfg.vocab_size)
        if self.lm_head is not None:  # as an embedding, so that training begins near uniform
            nn.init.normal_(self.lm_head.weight, std=0.02)
        self._scale_residual_writers()
        self._rotary = [part for part in self.modules() if isinstance(part, RotaryAngles)]

    @torch.no_grad()
    def _scale_residual_writers(self) -> None:
        """Keep the stream's variance independent of depth at the start (GPT-2's rule)."""
        for name, parameter in self.named_parameters():
            if name.endswith(RESIDUAL_WRITERS):
                parameter.mul_((2 * self.cfg.n_layers) ** -0.5)

    @property
    def head_weight(self) -> Tensor:
        """(vocab, D), the matrix that turns the trunk's output into logits."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def initial_state(self, batch_size: int, dtype: torch.dtype | None = None) -> Any:
        """Decoding state of sequences that have not begun: per layer, or of a looped model."""
        weight = self.embed_tokens.weight
        if self.recursion is not None:
            return LoopedState.new(batch_size, weight.device, dtype or weight.dtype)
        return [
            block.sequence_mixer.initial_state(batch_size, weight.device, dtype or weight.dtype)
            for block in self.blocks
        ]

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, T) tokens to the stream (B, T, D) that the first block reads."""
        x = self.embed_tokens(tokens)
        if self.cfg.scale_embeddings:
            x = x * self.cfg.d_model**0.5
        return self.dropout(x)

    def trunk(
        self,
        tokens: Tensor,
        state: Any = None,
        packing: Packing | None = None,
        loops: Loops | None = None,
    ) -> Trunk:
        """Everything before the head: (B, T) tokens to (B, T, D).

        `loops` says how often a looped model loops; absent, as often as it was trained to.
        """
        x = self.embed(tokens)
        packing = self._prepare(tokens, packing)
        if self.recursion is not None:
            stack = Stack(self.blocks, recomputes=self.recomputes)
            out = self.recursion(
                x, stack, self.norm, self.head_weight, state, packing, loops or Loops()
            )
            return Trunk(out.h, out.state, stack.aux_loss, stack.metrics, out.trace)
        assert loops is None, "only a looped model has loops"
        new_state: list[Any] = []
        aux_loss: Tensor | None = None
        metrics: dict[str, dict[str, Tensor]] = {}
        for i, block in enumerate(self.blocks):
            if self.recomputes and torch.is_grad_enabled() and state is None:
                out = block.recomputing(x, packing)
            else:
                out = block(x, None if state is None else state[i], packing)
            x = out.x
            new_state.append(out.state)
            if out.aux_loss is not None:
                aux_loss = out.aux_loss if aux_loss is None else aux_loss + out.aux_loss
            if out.metrics:
                metrics[f"layer_{i:02d}"] = out.metrics
        return Trunk(self.norm(x), None if state is None else new_state, aux_loss, metrics)

    def _prepare(self, tokens: Tensor, packing: Packing | None) -> Packing | None:
        """What compiled blocks read and must not make: angles, and forms of new lengths.

        On a GPU, rows of one document each are rows without packing, for which kernels are faster.
        """
        for angles in self._rotary:
            angles.grow(tokens.shape[1])
        if packing is None or (packing.is_whole and packing.prefix is None and tokens.is_cuda):
            return None
        packing.prepare(self.cfg.windows(tokens.shape[1]))
        return packing

    def update_balance(self) -> None:
        """Let routers rebalance; to be called once after every optimizer update."""
        for block in self.blocks:
            block.channel_mixer.update_balance()

    def forward(
        self,
        tokens: Tensor,
        state: Any = None,
        packing: Packing | None = None,
        *,
        last_only: bool = False,
        loops: Loops | None = None,
    ) -> ModelOutput:
        """(B, T) tokens to logits; `last_only` computes those of the last position alone."""
        out = self.trunk(tokens, state, packing, loops)
        h = out.h[:, -1:] if last_only else out.h
        return ModelOutput(h @ self.head_weight.T.to(h.dtype), out.state, out.aux_loss)


def build_model(cfg: LanguageModelConfig, seed: int) -> LanguageModel:
    """A model with its initial weights, the same for the same seed, other draws undisturbed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LanguageModel(cfg)
