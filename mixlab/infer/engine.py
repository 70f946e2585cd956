"""Many texts at once: requests join and leave between steps, each as if it were alone.

Every live request is a row of the model's caches. A step gives one token to every row, then reads
waiting prompts into rows that are free. What a request gets depends on its prompt, settings and
seed; other rows change nothing but the rounding of a product.
"""

import itertools
import math
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from mixlab.core.errors import LabError
from mixlab.infer.decoding.row_model import RowModel
from mixlab.infer.sampler import (
    SamplingConfig,
    TokenLogprobs,
    likeliest,
    logprobs,
    penalize,
    sample,
)
from mixlab.infer.text_stream import TextStream

DEFAULT_SAMPLING = SamplingConfig()
PROMPT_TOKENS_PER_STEP = 2048
"""Waiting prompts are read until there are this many; live rows wait no longer than for these.
Where no row is live, so that nobody waits, the model says how many."""


class Vocabulary(Protocol):
    """What the engine needs of a tokenizer."""

    eos_id: int
    vocab_size: int

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Request:
    """A text to be continued, and how."""

    prompt: Sequence[int]
    """Token ids; none: the beginning of a new document."""
    max_new_tokens: int
    """Longest answer, in tokens."""
    sampling: SamplingConfig = DEFAULT_SAMPLING
    """How tokens are drawn."""
    seed: int = 0
    """Same seed, same text."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end the answer, besides the tokenizer's end of text."""
    ignore_eos: bool = False
    """Go on after the end of text."""
    n_logprobs: int | None = None
    """Report log-probabilities: of the drawn token and of so many likeliest ones."""
    window: bool = False
    """Let a prompt that is too long lose its beginning, instead of being refused."""


class Event(NamedTuple):
    """What a step meant for one request."""

    key: int
    """The request, as `Engine.add` named it."""
    token: int | None
    """The drawn token; None where the answer ended by a stop token or an error."""
    text: str
    """What became certain of the answer; often nothing."""
    logprobs: TokenLogprobs | None = None
    finish: Literal["stop", "length", "error"] | None = None
    """Why this is the last event of the request."""
    message: str = ""
    """What went wrong."""


class _Live:
    """A request in a row."""

    def __init__(self, key: int, request: Request, prompt: array, words: Vocabulary) -> None:
        self.key, self.request = key, request
        self.n_new, self.last = 0, -1
        self.text = TextStream(words.decode, prompt, request.stop)
        self.stop_ids = request.stop_ids | (set() if request.ignore_eos else {words.eos_id})
        # On the CPU whatever the device, so that a seed means the same everywhere.
        self.generator = torch.Generator().manual_seed(int(request.seed))
        penalized = request.sampling.repetition_penalty != 1
        self.is_greedy = request.sampling.temperature == 0 and not penalized
        self.seen: list[int] | None = list(prompt) if penalized else None


class Engine:
    """Rows of one model, and the requests that wait for them. To be used from one thread."""

    def __init__(self, model: RowModel, words: Vocabulary, *, max_rows: int = 8) -> None:
        if not is_whole(max_rows) or max_rows < 1:
            raise LabError(f"max_rows = {max_rows!r}: expected a whole number of at least 1.")
        self.max_rows = int(max_rows)
        self._model, self._words = model, words
        self._keys = itertools.count()
        self._rows: list[_Live] = []
        self._waiting: deque[tuple[int, Request, array]] = deque()

    @property
    def context(self) -> int:
        """Most tokens, prompt and answer together."""
        return self._model.context

    @property
    def n_live(self) -> int:
        return len(self._rows)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def state_bytes(self) -> int:
        """What the caches of the live rows hold."""
        return self._model.state_bytes(len(self._rows))

    def add(self, request: Request) -> int:
        """Queue a request; it is read when a row is free.

        Raises:
            LabError: prompt and answer exceed the context, or a number is out of range.
        """
        prompt, _ = self.fit(request)
        key = next(self._keys)
        self._waiting.append((key, request, prompt))
        return key

    def fit(self, request: Request) -> tuple[array, int]:
        """The tokens that will be read, and how many of the prompt's first ones are left out.

        Raises:
            LabError: see `add`.
        """
        _check_numbers(request)
        n_prompt, n_dropped = max(1, len(request.prompt)), 0
        if request.window and request.max_new_tokens < self.context:
            n_dropped = max(0, n_prompt + int(request.max_new_tokens) - self.context)
        check_room(n_prompt - n_dropped, request.max_new_tokens, self.context)
        prompt = _known(request.prompt[n_dropped:], self._words.vocab_size)
        if not prompt and self._words.eos_id < 0:
            raise LabError("prompt = '': expected at least one token to continue.")
        return prompt or array("q", [self._words.eos_id]), n_dropped

    def remove(self, key: int) -> bool:
        """Forget a request, waiting or live; whether there was one."""
        for row, live in enumerate(self._rows):
            if live.key == key:
                self._free([row])
                return True
        before = len(self._waiting)
        self._waiting = deque(entry for entry in self._waiting if entry[0] != key)
        return len(self._waiting) < before

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One token for every live row, and the first one for prompts that find a row.

        Nothing to do gives no events.
        """
        events = []
        if self._rows:
            logits = self._model.step([live.last for live in self._rows])
            events = self._draw(self._rows, logits)
        return events + self._admit()

    def _admit(self) -> list[Event]:
        """Read waiting prompts, those of one length together."""
        events: list[Event] = []
        n_read = 0
        most = PROMPT_TOKENS_PER_STEP if self._rows else self._model.prompt_tokens
        while self._waiting and len(self._rows) < self.max_rows:
            group = [self._enter()]
            n_tokens = len(group[0][1])
            n_read += n_tokens
            while self._fits_beside(group, most - n_read):
                group.append(self._enter())
                n_read += n_tokens
            logits = self._model.read(len(self._rows), [prompt for _, prompt in group])
            lives = [live for live, _ in group]
            self._rows += lives
            events += self._draw(lives, logits)
            if n_read >= most:
                break
        return events

    def _enter(self) -> tuple[_Live, array]:
        key, request, prompt = self._waiting.popleft()
        return _Live(key, request, prompt, self._words), prompt

    def _fits_beside(self, group: list[tuple[_Live, array]], n_left: int) -> bool:
        """Whether the next waiting prompt can be read with the group: a row, length and budget."""
        if not self._waiting or len(self._rows) + len(group) >= self.max_rows:
            return False
        n_tokens = len(group[0][1])
        return n_tokens <= n_left and len(self._waiting[0][2]) == n_tokens

    # --- drawing ----------------------------------------------------------------------------------

    def _draw(self, rows: list[_Live], logits: Tensor) -> list[Event]:
        """A token for each row from its logits (B, V); rows that end are freed."""
        logits = logits[:, : self._words.vocab_size]  # further rows of the embedding mean nothing
        if all(live.is_greedy for live in rows):  # one pass for both
            most, first = likeliest(logits)
            tokens = first.tolist()
        else:
            most, tokens = logits.amax(dim=-1), self._sample(rows, logits)
        is_sound = [math.isfinite(value) for value in most.tolist()]
        events = []
        for i, (live, token) in enumerate(zip(rows, tokens, strict=True)):
            if is_sound[i]:
                events.append(self._event(live, token, logits[i]))
                continue
            message = "the model's outputs are not finite numbers"
            events.append(Event(live.key, None, live.text.flush(), None, "error", message))
        ended = {event.key for event in events if event.finish is not None}
        self._free([row for row, live in enumerate(self._rows) if live.key in ended])
        return events

    def _sample(self, rows: list[_Live], logits: Tensor) -> list[int]:
        """Rows with the same settings are drawn together."""
        if any(live.seen is not None for live in rows):
            logits = logits.clone()  # log-probabilities are those without the penalty
        for live, row in zip(rows, logits, strict=True):
            if live.seen is not None:
                seen = torch.tensor(live.seen, device=row.device)
                penalize(row, seen, live.request.sampling.repetition_penalty)
        groups: dict[SamplingConfig, list[int]] = {}
        first = rows[0].request.sampling
        if all(live.request.sampling is first for live in rows):
            groups[first] = list(range(len(rows)))
        else:
            for i, live in enumerate(rows):
                groups.setdefault(live.request.sampling, []).append(i)
        tokens = [0] * len(rows)
        for cfg, members in groups.items():
            uniform = self._uniform([rows[i] for i in members], cfg).to(logits.device)
            chosen = logits if len(members) == len(rows) else logits[members]
            for i, token in zip(members, sample(chosen, cfg, uniform).tolist(), strict=True):
                tokens[i] = token
        return tokens

    @staticmethod
    def _uniform(rows: list[_Live], cfg: SamplingConfig) -> Tensor:
        """(B,) float64 from [0, 1), from each request's own generator."""
        if cfg.temperature == 0:
            return torch.empty(0)
        draws = [torch.rand(1, generator=row.generator, dtype=torch.float64) for row in rows]
        return draws[0] if len(draws) == 1 else torch.cat(draws)

    def _event(self, live: _Live, token: int, logits: Tensor) -> Event:
        request = live.request
        if token in live.stop_ids:
            return Event(live.key, None, live.text.flush(), None, "stop")
        live.last, live.n_new = token, live.n_new + 1
        if live.seen is not None:
            live.seen.append(token)
        text = live.text.add(token)
        finish: Literal["stop", "length"] | None = None
        if live.text.stopped:
            finish = "stop"
        elif live.n_new >= request.max_new_tokens:
            text += live.text.flush()
            finish = "stop" if live.text.stopped else "length"
        nats = None
        if request.n_logprobs is not None:
            nats = logprobs(logits, token, request.n_logprobs)
        return Event(live.key, token, text, nats, finish)

    def _free(self, rows: Sequence[int]) -> None:
        """Close gaps by the last rows; from the back, so that those are not to be freed."""
        for row in sorted(rows, reverse=True):
            last = len(self._rows) - 1
            if row != last:
                self._model.move(last, row)
                self._rows[row] = self._rows[last]
            self._rows.pop()


def run_all(engine: Engine, each: Callable[[Event], None]) -> None:
    """Step until nothing is left to do."""
    while engine.n_live or engine.n_waiting:
        for event in engine.step():
            each(event)


# --- what a request may be ------------------------------------------------------------------------


def check_room(n_prompt: int, max_new_tokens: int, context: int) -> None:
    """Raise `LabError` where prompt and answer do not fit into the context together."""
    room = context - n_prompt
    if room < 1:
        raise LabError(
            f"prompt of {n_prompt} tokens: expected fewer than model.max_seq_len = {context}, so "
            "that there is room for an answer. Shorten the prompt."
        )
    if max_new_tokens > room:
        raise LabError(
            f"prompt of {n_prompt} tokens and {max_new_tokens} new ones: expected at most "
            f"model.max_seq_len = {context} together. Shorten the prompt or ask for at most "
            f"{room} tokens."
        )


def _known(tokens: Sequence[int], n_ids: int) -> array:
    """The tokens, if all are ids of the tokenizer; without work in Python for each of them."""
    try:
        ids = array("q", tokens)
    except OverflowError:  # larger than any id
        ids = None
    if ids is not None:
        seen = np.frombuffer(ids, dtype=np.int64) if ids else np.zeros(1)
        if seen.min() >= 0 and seen.max() < n_ids:
            return ids
    unknown = next(token for token in tokens if not 0 <= token < n_ids)
    raise LabError(
        f"prompt with token {unknown}: expected ids from 0 to {n_ids - 1}, which are all that the "
        "tokenizer has."
    )


def _check_numbers(request: Request) -> None:
    if not is_whole(request.max_new_tokens) or request.max_new_tokens < 1:
        raise LabError(
            f"max_new_tokens = {request.max_new_tokens!r}: expected a whole number of at least 1."
        )
    if not is_whole(request.seed) or not 0 <= request.seed < 2**63:
        raise LabError(f"seed = {request.seed!r}: expected a whole number from 0 to 2**63 - 1.")
    n = request.n_logprobs
    if n is not None and (not is_whole(n) or n < 0):
        raise LabError(f"n_logprobs = {n!r}: expected a whole number of at least 0, or none.")


def is_whole(value: object) -> bool:
    """Whether it is an integer, of Python or NumPy, and not a truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)
