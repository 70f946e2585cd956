"""What `gpu_training.py` compares: five shapes, each for mixlab and for its peers.

A shape is written down once; the settings of both sides are made from it, so that they cannot
drift apart. Nothing here imports PyTorch: the workers do.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Shape:
    """A decoder and the batch that it is trained on."""

    rows: int  # sequences of one update
    length: int  # tokens of each
    vocab: int
    width: int
    layers: int
    d_ff: int  # of the MLP, or of one expert
    heads: int  # of attention
    head_dim: int
    linear_heads: int = 0  # of Gated DeltaNet; 0: every layer has attention
    linear_head_dim: int = 0
    attention_at: tuple[int, ...] = ()  # of a hybrid
    experts: int = 0
    active_experts: int = 0
    rank: int = 0  # of the latents of multi-head latent attention

    @property
    def tokens(self) -> int:
        """Of one update."""
        return self.rows * self.length

    def tiny(self) -> "Shape":
        """The same kinds of layers in a size that a CPU trains at once."""
        small = replace(
            self, rows=2, length=64, vocab=512, width=64, layers=min(self.layers, 3), d_ff=64,
            heads=4, head_dim=16, rank=min(self.rank, 32),
            attention_at=(1,) if self.attention_at else (),
        )  # fmt: skip
        return replace(small, linear_heads=4, linear_head_dim=16) if self.linear_heads else small


@dataclass(frozen=True)
class Contender:
    """One way of training a shape."""

    key: str
    label: str
    family: str = "mixlab"  # whose model: mixlab, fla, llama, qwen3_moe, deepseek_v3
    weights: str = "float32"  # float32: products in bfloat16 under autocast
    compile: bool = False  # of a peer, by torch.compile
    overrides: tuple[str, ...] = ()  # of ours
    is_extra: bool = False  # only run when named, or with --all


@dataclass(frozen=True)
class Workload:
    """One line of the comparison."""

    key: str
    title: str
    recipe: str
    shape: Shape
    ours: Callable[[Shape], list[str]]  # changes to the recipe that make it this shape
    peers: tuple[Contender, ...]
    at_least: float  # tokens/s on one H200
    aim: float
    peer_overrides: tuple[str, ...] = ()  # changes to ours that give what the peers have
    contenders: tuple[Contender, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "contenders", (*OURS, *self.peers))

    def tiny(self) -> "Workload":
        """The same in a size that a CPU trains at once."""
        return replace(self, shape=self.shape.tiny())

    def contender(self, key: str) -> Contender:
        """The one of that name."""
        return next(c for c in self.contenders if c.key == key)


OURS = (
    Contender("mixlab", "mixlab, as it comes"),
    Contender("mixlab-eager", "mixlab, train.compile=false", overrides=("train.compile=false",),
              is_extra=True),
    Contender("mixlab-compiled", "mixlab, train.compile=true", overrides=("train.compile=true",),
              is_extra=True),
)  # fmt: skip


def _common(s: Shape) -> list[str]:
    """What every recipe is set to: size, batch, no dropout, AdamW as the peers have it."""
    return [
        f"data.seq_len={s.length}",
        f"data.tokenizer.vocab_size={min(s.vocab, 4096)}",  # not used: the tokens are random
        f"model.vocab_size={s.vocab}",
        f"model.d_model={s.width}",
        f"model.n_layers={s.layers}",
        f"model.max_seq_len={max(2048, s.length)}",
        "model.tie_embeddings=false",
        "model.dropout=0",
        f"train.batch_size={s.rows}",
        f"train.micro_batch_size={s.rows}",
        "train.optimizer={kind: adamw, lr: 1.0e-3}",
        "train.schedule={kind: constant}",
    ]


def _hybrid(s: Shape) -> list[str]:
    blocks = "model.blocks"
    mixer = f"{blocks}.linear.sequence_mixer"
    return [
        *_common(s),
        f"{mixer}.n_heads={s.linear_heads}",
        f"{mixer}.head_dim={s.linear_head_dim}",
        f"{blocks}.full.sequence_mixer.n_heads={s.heads}",
        f"{blocks}.full.sequence_mixer.head_dim={s.head_dim}",
        f"{blocks}.linear.channel_mixer.d_ff={s.d_ff}",
        f"{blocks}.full.channel_mixer.d_ff={s.d_ff}",
        f"model.pattern.at={list(s.attention_at)}",
    ]


def _attention(s: Shape) -> list[str]:
    mixer = "model.blocks.full.sequence_mixer"
    return [
        *_common(s),
        f"{mixer}.n_heads={s.heads}",
        f"{mixer}.n_kv_heads={s.heads}",
        f"{mixer}.head_dim={s.head_dim}",
        f"{mixer}.qk_norm=none",
        f"model.blocks.full.channel_mixer.d_ff={s.d_ff}",
    ]


def _experts(s: Shape) -> list[str]:
    mixer, experts = "model.blocks.experts.sequence_mixer", "model.blocks.experts.channel_mixer"
    return [
        *_common(s),
        f"{mixer}.n_heads={s.heads}",
        f"{mixer}.head_dim={s.head_dim}",
        f"{mixer}.qk_norm=head",
        f"{experts}.n_experts={s.experts}",
        f"{experts}.n_active_experts={s.active_experts}",
        f"{experts}.d_expert={s.d_ff}",
        f"{experts}.activation=swiglu",
        f"{experts}.router_noise_std=0",
    ]


def _latent(s: Shape) -> list[str]:
    mixer = "model.blocks.latent.sequence_mixer"
    return [
        *_common(s),
        f"{mixer}.n_heads={s.heads}",
        f"{mixer}.q_lora_rank={s.rank}",
        f"{mixer}.kv_lora_rank={s.rank}",
        f"{mixer}.qk_rope_head_dim={s.head_dim}",
        f"{mixer}.v_head_dim={s.head_dim}",
        f"model.blocks.latent.channel_mixer.d_ff={s.d_ff}",
    ]


def _fla(shape: str) -> tuple[Contender, ...]:
    return (
        Contender("fla-bf16", f"FLA {shape}, bf16 weights", "fla", weights="bfloat16"),
        Contender("fla-autocast", f"FLA {shape}, fp32 weights, autocast", "fla"),
    )


_HYBRID = Shape(
    rows=48, length=1024, vocab=49152, width=768, layers=12, d_ff=2048, heads=12, head_dim=64,
    linear_heads=12, linear_head_dim=256, attention_at=(5, 11),
)  # fmt: skip
_NEAR_EQUAL = replace(_HYBRID, heads=6, head_dim=128, linear_heads=6, linear_head_dim=128)

WORKLOADS = (
    Workload(
        "published",
        "hybrid-sparse-17-as-published, d_ff 2048: 12 x 768, Gated DeltaNet 12 heads of 256, "
        "attention at 5 and 11",
        "hybrid-sparse-17-as-published",
        _HYBRID,
        _hybrid,
        _fla("GatedDeltaNet hybrid"),
        at_least=200e3,
        aim=300e3,
    ),
    Workload(
        "hybrid",
        "hybrid-sparse-17: 12 x 768, Gated DeltaNet 6 heads of 128, attention at 5 and 11",
        "hybrid-sparse-17",
        _NEAR_EQUAL,
        _hybrid,
        _fla("GatedDeltaNet hybrid"),
        at_least=420e3,
        aim=500e3,
        peer_overrides=(
            "model.blocks.full.sequence_mixer.output_gate=false",
            "model.blocks.full.sequence_mixer.qk_norm=none",
        ),
    ),
    Workload(
        "attention",
        "all attention: 12 x 768, 12 heads of 64, SwiGLU of 2048",
        "quickstart",
        replace(_HYBRID, linear_heads=0, linear_head_dim=0, attention_at=()),
        _attention,
        (
            *_fla("all attention, SDPA"),
            Contender("llama-compiled", "transformers Llama, compiled, autocast", "llama",
                      compile=True),
            Contender("llama-bf16-compiled", "transformers Llama, compiled, bf16 weights", "llama",
                      weights="bfloat16", compile=True, is_extra=True),
        ),
        at_least=560e3,
        aim=650e3,
    ),
    Workload(
        "moe",
        "moe with gated experts: 8 x 512, 4 experts of 2048, top-2",
        "moe",
        Shape(rows=64, length=512, vocab=49152, width=512, layers=8, d_ff=2048, heads=8,
              head_dim=64, experts=4, active_experts=2),
        _experts,
        (
            Contender("qwen3-moe-bf16", "transformers Qwen3Moe, grouped_mm, bf16 weights",
                      "qwen3_moe", weights="bfloat16"),
            Contender("qwen3-moe-autocast", "transformers Qwen3Moe, grouped_mm, autocast",
                      "qwen3_moe", is_extra=True),
            Contender("qwen3-moe-compiled", "transformers Qwen3Moe, grouped_mm, compiled, bf16",
                      "qwen3_moe", weights="bfloat16", compile=True, is_extra=True),
        ),
        at_least=500e3,
        aim=700e3,
    ),
    Workload(
        "latent",
        "attention-mlp, untied: 3 x 256, latent attention, 4 heads of 64",
        "attention-mlp",
        Shape(rows=64, length=256, vocab=32000, width=256, layers=3, d_ff=1024, heads=4,
              head_dim=64, rank=128),
        _latent,
        (
            Contender("deepseek-compiled", "transformers DeepseekV3, compiled, autocast",
                      "deepseek_v3", compile=True),
            Contender("deepseek-bf16-compiled", "transformers DeepseekV3, compiled, bf16 weights",
                      "deepseek_v3", weights="bfloat16", compile=True, is_extra=True),
        ),
        at_least=2.5e6,
        aim=4e6,
    ),
)  # fmt: skip
