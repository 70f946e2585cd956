"""A language model as a table of rows: read a prompt into one, then one token for all of them.

`FusedRows` takes the steps of this package. Where tokens may leave long before the last loop that
is asked for, `PlainRows` takes row by row, as there every row goes its own way.
Shapes: B live rows, V vocabulary.
"""

import copy
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mixlab.core.errors import LabError
from mixlab.core.provenance import free_memory_bytes
from mixlab.core.units import size
from mixlab.infer.decoding.layers import Layers, form_for
from mixlab.infer.decoding.plan import plan
from mixlab.infer.decoding.prefill import Prefill
from mixlab.infer.decoding.prompts import Prompts
from mixlab.infer.decoding.rows import RopeTables, Rows
from mixlab.infer.decoding.static import GraphedSteps, StaticStep, rounded_up
from mixlab.infer.decoding.steps import (
    Backend,
    Form,
)
from mixlab.nn.language_model import LanguageModel
from mixlab.nn.recursion.loop_pass import Loops

FIRST_TOKENS = 256
"""Slots of a fresh cache."""
PROMPT_TOKENS = 16_384
"""Tokens of prompts that the model's own forward pass takes at once; a bound on its memory."""
MAX_DEPTH = 2
"""Up to so many times the trained depth, tokens that leave early are taken through all loops,
which lets rows go together; beyond, what they save by leaving is worth more."""


class RowModel(Protocol):
    """What an engine needs of a model."""

    context: int
    prompt_tokens: int
    """Of prompts, how many are worth reading at once while nobody waits."""

    def fresh(self) -> "RowModel":
        """The same weights with rows of its own."""

    def read(self, row: int, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Start rows, from this one on, with prompts of one length; the logits (B, V) of what
        follows each, float32 or wider."""

    def step(self, tokens: Sequence[int]) -> Tensor:
        """One more token for each of the first B rows; the logits (B, V) of what follows."""

    def move(self, source: int, target: int) -> None:
        """Let a row take the place of another one, which is forgotten."""

    def state_bytes(self, n_rows: int) -> int:
        """What the first rows occupy, without room that is kept for later tokens."""


# --- the fast form --------------------------------------------------------------------------------


class FusedRows:
    """Rows that go through the same layers together, looped or not."""

    def __init__(
        self, model: LanguageModel, prefill: Prefill, *, precision: torch.dtype | None = None,
        backend: Backend | None = None,
    ) -> None:  # fmt: skip
        self._model = model
        self._prefill = prefill
        self.context = model.cfg.max_seq_len
        self._layers = Layers(
            model, form_for(model, precision, backend), reads_prompts=not prefill.prefix_lm
        )
        weight = model.embed_tokens.weight
        self._device, self._dtype = weight.device, weight.dtype
        self._plan = plan(model, prefill.loops)
        self.prompt_tokens = PROMPT_TOKENS if self._prompts is None else Prompts.tokens
        self.is_static = self._layers.is_static
        self._generation = self._layers.generation
        self._forget()

    @property
    def form(self) -> Form:
        """How single tokens are computed."""
        return self._layers.form

    @property
    def _prompts(self) -> Prompts | None:
        return self._layers.prompts

    def _forget(self) -> None:
        self._caches = [self._layers.blocks[i].sequence.new_cache() for i in self._plan.blocks]
        self.lengths: list[int] = []
        self._longest: list[int] = []  # that any sequence of a row has been
        self.n_slots = 0
        self._tables = RopeTables()  # not shared: a graph reads from where its own table was
        self.graphs = GraphedSteps()

    def fresh(self) -> "FusedRows":
        rows = copy.copy(self)
        rows._forget()
        return rows

    def reserve(self, n_rows: int, n_tokens: int) -> None:
        """Room for rows of so many tokens, and for more to come."""
        if n_rows <= len(self.lengths) and n_tokens <= self.n_slots:
            return
        n_more = rounded_up(n_rows) - len(self.lengths)
        self.lengths += [0] * n_more
        self._longest += [0] * n_more
        if n_tokens > self.n_slots:
            # A graph looks at all slots there are; what takes only those in use may as well double.
            step = rounded_up(n_tokens) // (8 if self._device.type == "cuda" else 1)
            step = max(step, FIRST_TOKENS)
            self.n_slots = min(-(-n_tokens // step) * step, self.context)
        self.graphs.clear()
        for cache in self._caches:
            cache.reserve(len(self.lengths), self.n_slots)

    @torch.inference_mode()
    def read(self, row: int, prompts: Sequence[Sequence[int]]) -> Tensor:
        self._stays()
        self._layers.refresh()
        self._follow()
        n, n_tokens = len(prompts), len(prompts[0])
        self.reserve(row + n, n_tokens + 1)
        pairs = zip(self._longest[row : row + n], self.lengths[row : row + n], strict=True)
        n_before = max(max(pair) for pair in pairs)
        given = torch.from_numpy(np.array(prompts, dtype=np.int64)).to(self._device)
        if self._prompts is not None:
            logits = self._layers.logits(self._prompts(given, self._caches, row, n_before))
        else:
            logits, state = self._prefill(given, self._prefill.initial_state(n))
            for cache, part in zip(self._caches, self._plan.states(state), strict=True):
                cache.put(row, part, n_before)
        self.lengths[row : row + n] = self._longest[row : row + n] = [n_tokens] * n
        return logits

    def _stays(self) -> None:
        """Raise `LabError` where weights are not what the caches were made for."""
        weight = self._model.embed_tokens.weight
        if (weight.device, weight.dtype) != (self._device, self._dtype):
            raise LabError(
                f"the model is now {weight.dtype} on {weight.device}, and was {self._dtype} on "
                f"{self._device} when decoding was prepared. Make a new engine for it."
            )

    def _follow(self) -> None:
        """Use no weights but those of the layers, which rows of others may have taken anew."""
        if self._generation != self._layers.generation:
            self._generation = self._layers.generation
            self._prefill.forget()
            self.graphs.clear()

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Tensor:
        self._stays()
        self._follow()
        n = len(tokens)
        lengths = self.lengths[:n]
        most = max(lengths)
        self.reserve(n, most + 1)
        device = self._device
        if device.type == "cuda" and self.is_static:
            graphed = self._graphed(tokens, lengths)
            if graphed is not None:
                self.lengths[:n] = [length + 1 for length in lengths]
                return graphed(tokens, lengths)
        position = most if min(lengths) == most else None
        rows = Rows(torch.tensor(lengths, device=device), most + 1, position, self._tables)
        logits = self.forward(torch.tensor(tokens, device=device), rows)
        self.lengths[:n] = [length + 1 for length in lengths]
        return logits

    def _graphed(self, tokens: Sequence[int], lengths: Sequence[int]) -> StaticStep | None:
        n_rows = rounded_up(len(tokens))

        def make() -> StaticStep:
            step = StaticStep(self.forward, n_rows, self.n_slots, self._tables, self._device)
            kept = [cache.aside(n_rows) for cache in self._caches]
            step.fill(tokens, lengths)
            try:
                step.capture()
            finally:
                for cache, states in zip(self._caches, kept, strict=True):
                    cache.restore(states)
            return step

        return self.graphs.get(n_rows, self.n_slots, make)

    def forward(self, tokens: Tensor, rows: Rows) -> Tensor:
        """(B,) tokens to (B, V) logits; only tensor operations, so that a graph can hold them."""
        model = self._model
        x = F.embedding(tokens, model.embed_tokens.weight)
        if model.cfg.scale_embeddings:
            x = x * model.cfg.d_model**0.5
        caches = iter(self._caches)

        def run(where: slice, x: Tensor) -> Tensor:
            for block in self._layers.blocks[where]:
                x = block(x, next(caches), rows)
            return x

        return self._layers.logits(self._plan.run(x, run))

    def move(self, source: int, target: int) -> None:
        n_tokens = self.lengths[source]
        n_before = max(self._longest[target], self.lengths[target])
        with torch.inference_mode():
            for cache in self._caches:
                cache.move(source, target, n_tokens, n_before)
        self._longest[target] = self.lengths[target] = n_tokens

    def state_bytes(self, n_rows: int) -> int:
        return sum(c.row_bytes(n) for c in self._caches for n in self.lengths[:n_rows])


# --- any model ------------------------------------------------------------------------------------


class PlainRows:
    """Rows of any model, each with the state that its forward pass returns."""

    prompt_tokens = PROMPT_TOKENS

    def __init__(self, model: LanguageModel, prefill: Prefill) -> None:
        self._model, self._prefill = model, prefill
        self.context = model.cfg.max_seq_len
        self._states: list[Any] = []

    def fresh(self) -> "PlainRows":
        return PlainRows(self._model, self._prefill)

    @torch.inference_mode()
    def read(self, row: int, prompts: Sequence[Sequence[int]]) -> Tensor:
        self._states += [None] * (row + len(prompts) - len(self._states))
        for i in range(row, row + len(prompts)):
            self._states[i] = self._prefill.initial_state(1)
        return torch.cat([self._one(row + i, p, self._prefill) for i, p in enumerate(prompts)])

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Tensor:
        return torch.cat([self._one(row, [t], self._prefill) for row, t in enumerate(tokens)])

    def _one(self, row: int, tokens: Sequence[int], forward: Prefill) -> Tensor:
        device = self._model.embed_tokens.weight.device
        given = torch.tensor(np.array([tokens], dtype=np.int64), device=device)
        logits, self._states[row] = forward(given, self._states[row])
        return logits

    def move(self, source: int, target: int) -> None:
        self._states[target], self._states[source] = self._states[source], None

    def state_bytes(self, n_rows: int) -> int:
        return sum(_tensor_bytes(state) for state in self._states[:n_rows])


def _tensor_bytes(node: Any) -> int:
    if isinstance(node, Tensor):
        return node.numel() * node.itemsize
    if isinstance(node, dict):
        return sum(map(_tensor_bytes, node.values()))
    return sum(map(_tensor_bytes, node)) if isinstance(node, list | tuple) else 0


def row_model(
    model: LanguageModel, *, loops: Loops | None = None, precision: torch.dtype | None = None,
    prefix_lm: bool = False, backend: Backend | None = None,
) -> RowModel:  # fmt: skip
    """The fastest form in which a model can write for several sequences at once.

    `loops` belongs to looped models: absent, they loop to their trained depth and tokens leave by
    the exit rule. `precision` is that of matrix products; absent, that of the weights. `backend` is
    for single tokens; absent, the fastest that can run.

    Raises:
        BackendError: the backend that was asked for cannot run on these weights.
    """
    recursion = model.recursion
    deep = False
    if recursion is not None:
        loops = loops or Loops(may_exit=True)
        exits = recursion.rule(loops, model.head_weight) is not None
        trained = recursion.cfg.depth.trained_steps
        deep = exits and (loops.steps or trained) > MAX_DEPTH * trained
        loops = loops._replace(may_exit=exits, catches_up=exits and not deep)
    prefill = Prefill(model, loops, precision, prefix_lm=prefix_lm)
    if deep or not _has_room(model):
        return PlainRows(model, prefill)
    return FusedRows(model, prefill, precision=precision, backend=backend)


def _has_room(model: LanguageModel) -> bool:
    """Whether a copy of the weights fits into the memory that is free; if not, that is said."""
    free = free_memory_bytes()
    if free is None or model.embed_tokens.weight.device.type != "cpu":
        return True
    need = sum(weight.numel() * weight.itemsize for weight in model.parameters())
    if need <= free:
        return True
    warnings.warn(
        f"texts are written one by one, which is slower: a copy of the weights takes {size(need)}, "
        f"and {size(free)} of memory are free",
        stacklevel=3,
    )
    return False
