"""Parts of an evaluation that test memory: associative recall, and needles in haystacks."""

from typing import ClassVar

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

from mixlab.core.errors import ConfigError
from mixlab.core.units import count, percent
from mixlab.evals.needle import Needle, score_needle
from mixlab.evals.recall import score_recall
from mixlab.evals.words import word_tokens
from mixlab.jobs.evaluation.bench import Bench, Measured, Part
from mixlab.tasks.recall import Recall


class RecallPart(Part):
    """Multi-query associative recall, with tokens of the model's own vocabulary."""

    kind: ClassVar[str] = "recall"
    pairs: tuple[PositiveInt, ...] = (4, 8, 16, 32)
    """Numbers of key-value pairs to try."""
    n: int = Field(default=100, ge=2)
    """Rows for each of them; a row asks for up to 8 keys."""
    n_values: int = Field(default=10, ge=2, le=59)
    """Values that a key may have."""
    seed: NonNegativeInt = 0
    """Of the rows."""

    def measure(self, bench: Bench) -> Measured:
        model, scores, notes, details = bench.trained.model, [], [], {}
        for n_pairs in self.pairs:
            n_queries = min(8, n_pairs)
            if 2 * (n_pairs + n_queries) - 1 > bench.max_len:
                notes.append(
                    f"recall, {n_pairs} pairs: left out, as it takes {2 * (n_pairs + n_queries)} "
                    f"tokens, and model.max_seq_len = {bench.max_len}."
                )
                continue
            task = Recall(
                n_pairs=n_pairs, n_queries=n_queries, n_keys=n_pairs, n_values=self.n_values
            )
            pool = word_tokens(bench.trained.tokenizer, n_pairs + self.n_values)
            with bench.screen.task(f"Recall of {n_pairs} pairs", self.n) as advance:
                found = score_recall(
                    model, task, pool, seed=self.seed, n_rows=self.n,
                    compute_dtype=bench.compute_dtype, advance=advance,
                )  # fmt: skip
            scores += found.scores
            details[str(n_pairs)] = {"guess_seen": found.guess_seen, "n_queries": n_queries}
        if scores:
            levels = ", ".join(
                f"{percent(d['guess_seen'])} of {pairs}" for pairs, d in details.items()
            )
            notes.append(f"recall: copying any value of the row gets {levels} pairs right.")
        return Measured(scores, details, notes)


class NeedlePart(Part):
    """One sentence with a secret, hidden at several depths of prompts of several lengths."""

    kind: ClassVar[str] = "needle"
    lengths: tuple[PositiveInt, ...] | None = None
    """Tokens of the prompts; absent: a quarter of the trained length, doubled up to the longest."""
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Share of the text that stands before the needle."""
    n: int = Field(default=20, ge=2)
    """Needles for each length and depth."""
    n_choices: int = Field(default=10, ge=2)
    """Words that the secret is ranked among."""
    seed: NonNegativeInt = 0
    """Of texts and secrets."""

    def measure(self, bench: Bench) -> Measured:
        trained = bench.trained
        for length in self.lengths or ():
            if length > bench.max_len:
                raise ConfigError(
                    "needle_lengths", length, f"at most model.max_seq_len = {bench.max_len}"
                )
        lengths = self.lengths or _doubled(max(32, bench.trained_len // 4), bench.max_len)
        shards = bench.data.split("validation")
        stream = np.asarray(shards.tokens[:1_000_000])
        haystack = stream[stream != shards.eos_id]
        pool = word_tokens(trained.tokenizer, self.n_choices)
        scores = []
        n = len(lengths) * len(self.depths) * self.n
        with bench.screen.task("Needles", n) as advance:
            for length in lengths:
                for depth in self.depths:
                    found = score_needle(
                        trained.model, trained.tokenizer, haystack, pool, Needle(length, depth),
                        n=self.n, n_choices=self.n_choices, seed=self.seed,
                        compute_dtype=bench.compute_dtype, advance=advance,
                    )  # fmt: skip
                    scores.append(found)
        notes = []
        if max(lengths) > bench.trained_len:
            notes.append(
                f"needle: the model was trained on sequences of {count(bench.trained_len)} tokens; "
                "longer prompts ask for more than it was taught."
            )
        return Measured(scores, {"trained_len": bench.trained_len}, notes)


def _doubled(first: int, last: int) -> tuple[int, ...]:
    lengths = [min(first, last)]
    while lengths[-1] * 2 <= last:
        lengths.append(lengths[-1] * 2)
    return tuple(lengths)
