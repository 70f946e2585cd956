"""The refiner: a small network that sees a whole question and improves a whole answer.

    z_L <- net(z_L + z_H + x)   L_cycles times, then   z_H <- net(z_H + z_L)

is one cycle; H_cycles of them are one segment, of which the last `grad_cycles` carry gradient. The
answer is read from z_H after every segment, and the states go on to the next one.

Source: TRM [arXiv:2510.04871], one shared network (H_layers = 0); HRM [arXiv:2506.21734], two.
Shapes: B batch, L positions of the puzzle, R registers before them, D d_model, V vocabulary.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from mixlab.core.config import Config
from mixlab.core.errors import Rule
from mixlab.nn.channel_mixers import CHANNEL_MIXERS
from mixlab.nn.linear import Linear
from mixlab.nn.recursion.halting import HALTING, BceConfig
from mixlab.nn.recursion.whole_row import (
    WHOLE_ROW_MIXERS,
    build_whole_row,
    check_whole_row,
    whole_row_flops_per_token,
    whole_row_params,
)
from mixlab.ops.dtypes import at_least_float32, autocast_once


class RefinerBlockConfig(Config):
    """What one block is made of."""

    sequence_mixer: WHOLE_ROW_MIXERS.annotation()  # type: ignore[valid-type]
    """Moves information between positions, in both directions."""
    channel_mixer: CHANNEL_MIXERS.annotation()  # type: ignore[valid-type]
    """Works on each position by itself."""


class RefinerConfig(Config):
    """A recursive answer refiner: the blocks, how often they run, and when that ends."""

    vocab_size: PositiveInt
    """Tokens of the task, the unused 0 included."""
    grid: tuple[PositiveInt, PositiveInt]
    """Rows and columns of the puzzle."""
    box: tuple[PositiveInt, PositiveInt] | None = None
    """Rows and columns of a Sudoku box, for the positions; absent: the task has none."""
    d_model: PositiveInt
    """Width of the states."""
    block: RefinerBlockConfig
    """The kind of block that all layers have."""
    L_layers: PositiveInt = 2
    """Blocks of the network that updates z_L."""
    H_layers: NonNegativeInt = 0
    """Blocks of a second network for z_H; 0: one network does both."""
    L_cycles: NonNegativeInt = 6
    """Updates of z_L in one cycle; 0 needs states that begin as the question."""
    H_cycles: PositiveInt = 3
    """Cycles of one segment."""
    grad_cycles: PositiveInt = 1
    """Cycles at the end of a segment that carry gradient."""
    state_init: Literal["fixed_random", "learned", "input", "zeros"] = "fixed_random"
    """How z_H and z_L begin."""
    norm_placement: Literal["post", "pre"] = "post"
    """Normalize the sum after each mixer (post), or what each mixer reads (pre)."""
    positions: Literal["grid", "learned", "none"] = "grid"
    """Added to the question: a vector per row, column and box; one per cell; or nothing."""
    num_registers: NonNegativeInt = 1
    """Learned positions before the puzzle. The halting head reads the first; without any, it reads
    the mean over the puzzle."""
    scale_embeddings: bool = True
    """Embeddings start at 1/sqrt(D) and are multiplied by sqrt(D); false: they start at 1."""
    init_scale: PositiveFloat = 1.0
    """Factor on the first weights of the mixers' projections. Below 1 a block begins nearer to the
    identity, and the recursion of an untrained network is less chaotic."""
    norm_eps: PositiveFloat = 1e-5
    """Epsilon of the norms, which have no weights."""
    halting: HALTING.annotation() = Field(default=BceConfig())  # type: ignore[valid-type]
    """When an example has been refined enough."""

    @model_validator(mode="after")
    def _fits(self) -> "RefinerConfig":
        if self.grad_cycles > self.H_cycles:
            raise Rule("grad_cycles", self.grad_cycles, f"at most H_cycles = {self.H_cycles}")
        if self.state_init == "learned" and self.grad_cycles < self.H_cycles:
            raise Rule(
                "state_init", "learned",
                f"a state that the gradient reaches; with grad_cycles = {self.grad_cycles} of "
                f"H_cycles = {self.H_cycles} none does",
                "Set grad_cycles to H_cycles, or use fixed_random.",
            )  # fmt: skip
        if self.L_cycles == 0 and self.state_init != "input":
            raise Rule(
                "L_cycles", 0,
                f"at least 1 with state_init = {self.state_init}; the question enters the updates "
                "of z_L alone, so the answer would ignore it",
                "For a single pass over the question, set state_init to input.",
            )  # fmt: skip
        if self.box is not None and any(
            side % part for side, part in zip(self.grid, self.box, strict=True)
        ):
            raise Rule("box", list(self.box), f"divisors of grid = {list(self.grid)}")
        for part, check in (
            ("sequence_mixer", check_whole_row),
            ("channel_mixer", lambda mixer, d_model: mixer.check(d_model)),
        ):
            try:
                check(getattr(self.block, part), self.d_model)
            except Rule as rule:
                path = f"block.{part}.{rule.field}"
                raise Rule(path, rule.got, rule.expected, rule.fix) from None
        return self

    @property
    def length(self) -> int:
        """Cells of the puzzle."""
        return self.grid[0] * self.grid[1]

    @property
    def n_layers(self) -> int:
        """Layers that one segment runs through, one after the other."""
        per_cycle = self.L_cycles * self.L_layers + (self.H_layers or self.L_layers)
        return self.H_cycles * per_cycle


class RefinerState(NamedTuple):
    z_H: Tensor
    z_L: Tensor

    def detach(self) -> "RefinerState":
        return RefinerState(self.z_H.detach(), self.z_L.detach())


class Segment(NamedTuple):
    """What one segment gives."""

    state: RefinerState  # with gradient
    logits: Tensor  # (B, L, V)
    halt_logits: Tensor | None  # (B, n_logits)
    aux_loss: Tensor | None  # of channel mixers, mean over the calls with gradient


class RefinerBlock(nn.Module):
    """A residual block whose norms have no weights."""

    def __init__(self, cfg: RefinerConfig) -> None:
        super().__init__()
        n_positions = cfg.length + cfg.num_registers
        self.sequence_mixer = build_whole_row(cfg.block.sequence_mixer, cfg.d_model, n_positions)
        self.channel_mixer = cfg.block.channel_mixer.build(cfg.d_model)
        self.is_post, self.eps = cfg.norm_placement == "post", cfg.norm_eps

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, R + L, D) to the same, with the channel mixer's auxiliary loss."""
        if self.is_post:
            x = unit_rms(x + self.sequence_mixer(x).y, self.eps)
            out = self.channel_mixer(x)
            return unit_rms(x + out.y, self.eps), out.aux_loss
        x = x + self.sequence_mixer(unit_rms(x, self.eps)).y
        out = self.channel_mixer(unit_rms(x, self.eps))
        return x + out.y, out.aux_loss


class Net(nn.Module):
    """A stack of blocks; with pre-norm blocks it ends in a norm, so that states keep their size."""

    def __init__(self, cfg: RefinerConfig, n_layers: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(RefinerBlock(cfg) for _ in range(n_layers))
        self.has_final_norm, self.eps = cfg.norm_placement == "pre", cfg.norm_eps

    def forward(self, state: Tensor, added: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, R + L, D) twice, of which the sum is read; the new state, and the auxiliary loss."""
        x, aux_loss = state + added, None  # summed here, so that a compiled net fuses it
        for block in self.blocks:
            x, aux = block(x)
            if aux is not None:
                aux_loss = aux if aux_loss is None else aux_loss + aux
        return (unit_rms(x, self.eps) if self.has_final_norm else x), aux_loss


class Refiner(nn.Module):
    """See the module's documentation."""

    def __init__(self, cfg: RefinerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        D, std = cfg.d_model, cfg.d_model**-0.5 if cfg.scale_embeddings else 1.0
        self.embed_tokens = nn.Parameter(std * torch.randn(cfg.vocab_size, D))
        self.registers = nn.Parameter(std * torch.randn(cfg.num_registers, D))
        index, n_vectors = _places(cfg)
        self.register_buffer("place_index", index, persistent=False)  # (n_tables, L)
        self.embed_places = nn.Parameter(std * torch.randn(n_vectors, D))
        self.L_net = Net(cfg, cfg.L_layers)
        self.H_net = Net(cfg, cfg.H_layers) if cfg.H_layers else None
        self.lm_head = Linear(D, cfg.vocab_size)
        n_logits = cfg.halting.n_logits
        self.q_head = Linear(D, n_logits, bias=True) if n_logits else None
        if self.q_head is not None:
            nn.init.zeros_(self.q_head.weight)
            nn.init.constant_(self.q_head.bias, cfg.halting.q_head_bias_init)
        self._make_first_states()
        self._scale_projections()

    def _make_first_states(self) -> None:
        """One vector per state, broadcast over positions; see `state_init`."""
        for name in ("first_H", "first_L"):
            vector = torch.zeros(self.cfg.d_model)
            if self.cfg.state_init in ("fixed_random", "learned"):
                nn.init.trunc_normal_(vector, std=1.0, a=-2.0, b=2.0)
            if self.cfg.state_init == "learned":
                self.register_parameter(name, nn.Parameter(vector))
            else:
                self.register_buffer(name, vector)

    @torch.no_grad()
    def _scale_projections(self) -> None:
        for net in (self.L_net, self.H_net):
            for name, parameter in net.named_parameters() if net is not None else ():
                if "_proj" in name:
                    parameter.mul_(self.cfg.init_scale)

    def embed(self, inputs: Tensor) -> Tensor:
        """(B, L) tokens of the question to x (B, R + L, D), every part of unit size."""
        cfg = self.cfg
        x = F.embedding(inputs, self.embed_tokens)
        # Not averaged: a row's code must stand out from the noise of the first states.
        x = x + self.embed_places[self.place_index].sum(dim=0)
        if cfg.num_registers:
            x = torch.cat([self.registers.expand(len(x), -1, -1), x], dim=1)
        return x * cfg.d_model**0.5 if cfg.scale_embeddings else x

    def initial_state(self, inputs: Tensor) -> RefinerState:
        """The states of examples that have not begun, from their questions (B, L)."""
        if self.cfg.state_init == "input":
            x = self.embed(inputs)
            return RefinerState(x, x)
        shape = (len(inputs), self.cfg.num_registers + self.cfg.length, self.cfg.d_model)
        return RefinerState(self.first_H.expand(shape), self.first_L.expand(shape))

    def cycle(self, state: RefinerState, x: Tensor) -> tuple[RefinerState, Tensor | None]:
        """`L_cycles` updates of z_L, then one of z_H."""
        z_H, z_L = state
        L_net, H_net = self.L_net, self.H_net or self.L_net
        if not self.training:  # compiled code is for the one shape of training
            L_net, H_net = L_net.forward, H_net.forward
        aux_losses = []
        question = z_H + x
        for _ in range(self.cfg.L_cycles):
            z_L, aux = L_net(z_L, question)
            aux_losses.append(aux)
        z_H, aux = H_net(z_H, z_L)
        aux_losses.append(aux)
        aux_loss = None if aux is None else torch.stack(aux_losses).mean()
        return RefinerState(z_H, z_L), aux_loss

    def forward(self, state: RefinerState, inputs: Tensor) -> Segment:
        """One segment: `H_cycles` cycles, all but the last `grad_cycles` without gradient."""
        cfg = self.cfg
        # Under autocast the states are as narrow as the products: sums and norms move half as much.
        x, state = autocast_once(self.embed(inputs)), RefinerState(*map(autocast_once, state))
        with torch.no_grad():
            for _ in range(cfg.H_cycles - cfg.grad_cycles):
                state, _ = self.cycle(state, x)
        aux_losses = []
        for _ in range(cfg.grad_cycles):
            state, aux = self.cycle(state, x)
            aux_losses.append(aux)
        aux_loss = None if aux_losses[0] is None else torch.stack(aux_losses).mean()
        return Segment(
            state, self.lm_head(state.z_H[:, cfg.num_registers :]), self.halt(state), aux_loss
        )

    def halt(self, state: RefinerState) -> Tensor | None:
        """(B, n_logits) of the halting head."""
        if self.q_head is None:
            return None
        read = state.z_H[:, :1] if self.cfg.num_registers else state.z_H
        read = at_least_float32(read).mean(dim=1)
        with torch.autocast(read.device.type, enabled=False):
            return self.q_head(read)

    def update_balance(self) -> None:
        """Let routers rebalance; to be called once after every optimizer update."""
        for net in (self.L_net, self.H_net):
            for block in net.blocks if net is not None else ():
                block.channel_mixer.update_balance()


def unit_rms(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimension."""
    return F.rms_norm(at_least_float32(x), x.shape[-1:], None, eps).to(x.dtype)


def _places(cfg: RefinerConfig) -> tuple[Tensor, int]:
    """Each cell's vector in every table, as (n_tables, L) rows of one matrix; and its rows."""
    rows, cols = cfg.grid
    cell = torch.arange(cfg.length)
    row, col = cell // cols, cell % cols
    if cfg.positions == "none":
        return cell.new_empty(0, cfg.length), 0
    if cfg.positions == "learned":
        return cell[None], cfg.length
    tables, n_vectors = [row, rows + col], rows + cols
    if cfg.box is not None:
        per_band = cols // cfg.box[1]
        box = row // cfg.box[0] * per_band + col // cfg.box[1]
        tables.append(n_vectors + box)
        n_vectors += rows // cfg.box[0] * per_band
    return torch.stack(tables), n_vectors


def build_refiner(cfg: RefinerConfig, seed: int) -> Refiner:
    """A refiner with its initial weights, the same for the same seed, other draws undisturbed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Refiner(cfg)


# --- what it costs ------------------------------------------------------------------------------


class RefinerBudget(NamedTuple):
    """Parameters and FLOPs by formula; a multiply-add counts 2."""

    n_params: int
    n_active_params: int
    n_embedding_params: int
    segment_flops: float  # forward, per example: H_cycles cycles and the head
    train_segment_flops: float  # with the backward pass of the cycles that carry gradient
    train_flops_per_token: float  # of one update, per label


def refiner_budget(cfg: RefinerConfig) -> RefinerBudget:
    """Count `cfg`. The backward pass is taken as twice its forward; the halting head is left out
    of the FLOPs."""
    D, n_positions = cfg.d_model, cfg.length + cfg.num_registers
    mixer, channel = cfg.block.sequence_mixer, cfg.block.channel_mixer
    mixing = whole_row_params(mixer, D, n_positions)
    n_layers = cfg.L_layers + cfg.H_layers
    embedding = cfg.vocab_size * D + cfg.num_registers * D + _places(cfg)[1] * D
    rest = embedding + cfg.vocab_size * D + cfg.halting.n_logits * (D + 1)
    rest += 2 * D if cfg.state_init == "learned" else 0
    per_layer = n_positions * (
        whole_row_flops_per_token(mixer, D, n_positions) + channel.flops_per_token(D)
    )
    cycle = per_layer * (cfg.L_cycles * cfg.L_layers + (cfg.H_layers or cfg.L_layers))
    head = 2 * cfg.length * cfg.vocab_size * D
    backward = 2 * (cfg.grad_cycles * cycle + head)
    if cfg.halting.kind == "q_learning":
        backward += cfg.H_cycles * cycle  # the look at the next segment, without gradient
    train_segment = cfg.H_cycles * cycle + head + backward
    n_segments = cfg.halting.halt_max_steps if cfg.halting.unrolls else 1
    return RefinerBudget(
        n_params=n_layers * (mixing + channel.n_params(D)) + rest,
        n_active_params=n_layers * (mixing + channel.n_active_params(D)) + rest,
        n_embedding_params=embedding,
        segment_flops=cfg.H_cycles * cycle + head,
        train_segment_flops=train_segment,
        train_flops_per_token=n_segments * train_segment / cfg.length,
    )
