"""On what ground arms are compared: equal text, tokenizer and validation set, or a label, or none.

Rules, each held against the first arm:

    another kind of run, other text, other split              refused
    one tokenizer, but validation sets of different length    refused
    another tokenizer or seq_len                               bits per byte, and said
    other batches, tokens, device, precision, package         said; with other tokens no winner
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixlab.core.config import digest
from mixlab.core.errors import LabError
from mixlab.core.units import count
from mixlab.report.comparison_runs import RunFigures
from mixlab.report.material import Facts, at


@dataclass(frozen=True)
class Metric:
    """What decides: a column of the validation rows."""

    name: str
    unit: str
    lower_is_better: bool


NATS = Metric("loss_nats", "nats per token", True)
BITS = Metric("bits_per_byte", "bits per byte", True)
EXACT = Metric("exact_accuracy", "share of puzzles solved", False)


@dataclass(frozen=True)
class Ground:
    """What the figures of one arm stand on."""

    kind: str
    text: str  # digest of corpus, split and validation documents
    tokenizer: str
    seq_len: int | None
    n_eval_tokens: int | None
    batch_size: int | None


def ground(config: Facts, manifest: Facts) -> Ground:
    """Of a config and the manifest of its data."""
    splits = manifest.get("splits") or {}
    validation = splits.get("validation") or {}
    kind = str(config.get("kind", "language_model"))
    is_puzzles = kind == "refine"
    text: Any = [manifest.get("content_hash"), manifest.get("task")]
    if not is_puzzles:
        held_out = [validation.get(key) for key in ("documents", "bytes")]
        text = [manifest.get("content_hash"), manifest.get("split"), held_out]
    return Ground(
        kind=kind,
        text=digest(text),
        tokenizer=str((manifest.get("tokenizer") or {}).get("hash")),
        seq_len=at(config, "data.seq_len"),
        n_eval_tokens=None if is_puzzles else at(config, "eval.n_tokens"),
        batch_size=at(config, "train.batch_size"),
    )


def choose_metric(grounds: Mapping[str, Ground]) -> tuple[Metric, list[str]]:
    """The metric that all arms can be held to, and what a reader must know.

    Raises:
        LabError: the arms have nothing to be compared by; names the two and what differs.
    """
    names = list(grounds)
    base_name, base = names[0], grounds[names[0]]
    metric = EXACT if base.kind == "refine" else NATS
    labels: list[str] = []
    for name in names[1:]:
        other = grounds[name]
        require_one_text(base_name, base, name, other)
        unequal = []
        if other.tokenizer != base.tokenizer:
            unequal.append("another tokenizer")
        if other.seq_len != base.seq_len and base.kind != "refine":
            unequal.append(f"sequences of {other.seq_len} tokens in place of {base.seq_len}")
        if unequal:
            metric = BITS
            labels.append(
                f"{name} has {' and '.join(unequal)}: losses per token do not compare, so bits per "
                "byte decide. Each arm is measured on the first windows of the same validation "
                "documents, which need not end at the same byte."
            )
        elif other.n_eval_tokens != base.n_eval_tokens:
            raise LabError(
                f"{base_name} and {name}: are measured on validation sets of different length, "
                f"eval.n_tokens = {base.n_eval_tokens} and {other.n_eval_tokens}. Train one of "
                "them again with the other's."
            )
        if other.batch_size != base.batch_size or unequal:
            labels.append(f"{name} does not see the batches of {base_name}.")
    return metric, list(dict.fromkeys(labels))


def run_labels(base: str, runs: Mapping[str, Sequence[RunFigures]]) -> list[str]:
    """What differs between finished runs and is no ground to refuse."""
    labels = []
    first = runs[base][0]
    for name, figures in runs.items():
        for what, value in (("device", "device"), ("precision", "precision")):
            if getattr(figures[0], value) != getattr(first, value):
                labels.append(
                    f"{name} ran with {what} {getattr(figures[0], value)}, {base} with "
                    f"{getattr(first, value)}: times do not compare."
                )
        if figures[0].code != first.code:
            labels.append(
                f"{name} was made by {figures[0].code or 'an unknown version'}, {base} by "
                f"{first.code or 'an unknown version'}."
            )
        early = [str(run.seed) for run in figures if run.status == "stopped early"]
        if early:
            labels.append(f"{name} stopped early with seed {', '.join(early)}.")
    return labels


def tokens_label(base: str, base_tokens: int, name: str, tokens: int) -> str:
    """Unequal amounts of text, in words."""
    return (
        f"{name} was trained on {count(tokens)} tokens, {base} on {count(base_tokens)}: no winner "
        "is named between them."
    )


def require_one_text(a: str, first: Ground, b: str, second: Ground) -> None:
    """Refuse arms that are measured on different things.

    Raises:
        LabError: other kinds of run, other text, or another split of it.
    """
    if first.kind != second.kind:
        raise LabError(
            f"{a} is of kind {first.kind} and {b} of kind {second.kind}: expected runs of one "
            "kind, as their figures measure different things."
        )
    if first.text != second.text:
        what = "puzzles" if first.kind == "refine" else "text, or split it differently"
        raise LabError(
            f"{a} and {b}: do not have the same {what}, so their figures cannot be compared. For "
            "recipes, give the data to both, such as data=stdlib or data.corpus.kind=python-stdlib."
        )
