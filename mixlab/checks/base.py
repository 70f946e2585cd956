"""What a check is given, and what it answers.

A check is a function of a `CheckContext`. It believes nothing that the model says of itself: it
only feeds tokens, compares outputs and looks at gradients.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mixlab.data.batch import Batch
from mixlab.data.loader import Loader
from mixlab.evals.language_modelling import evaluate
from mixlab.nn.language_model import LanguageModel
from mixlab.nn.recursion.loop_pass import Loops
from mixlab.ops.packing import Packing
from mixlab.training.language_modelling import accumulate_gradients
from mixlab.training.optimizers import AdamWConfig, OptimizerConfig

Verdict = Literal["pass", "fail", "not applicable"]

ROUNDING = 2.0**-26
"""Largest difference, relative to the largest logit, that counts as the same result in float64:
half of its digits. Sums of thousands of terms through a hundred layers err by far less, and an
error in what is computed, rather than in how it is rounded, is far more."""


class Finding(NamedTuple):
    """What one check found."""

    verdict: Verdict
    measured: str  # the figures in words, for people
    meaning: str  # what that says to a user, in a sentence or two
    figures: dict[str, Any]  # the same figures for programs


@dataclass(frozen=True)
class CheckResult:
    """A finding with the name of its check: one row of the table and of checks.json."""

    name: str
    question: str
    finding: Finding

    @property
    def verdict(self) -> Verdict:
        return self.finding.verdict

    def row(self) -> dict[str, Any]:
        """Plain data."""
        return {"check": self.name, "question": self.question, **self.finding._asdict()}


@dataclass(frozen=True)
class TrainedModel:
    """What a finished or stopped run can show besides its architecture."""

    model: nn.Module  # with the weights that are evaluated, in eval mode
    loader: Loader  # of the validation split
    loss_nats: float  # of the last evaluation
    earlier_loss_nats: float | None  # of an evaluation near half the updates; None: there is none
    unigram_entropy_nats: float  # of the evaluated targets
    ln_vocab_nats: float


@dataclass(frozen=True)
class CheckContext:
    """Everything that checks may look at. Nothing in it is changed by a check."""

    build: Callable[[], LanguageModel]
    """A new model on the CPU with its first weights, the same at every call, noise switched off."""
    seq_len: int
    """Tokens of a real sequence, for causality; other checks have lengths of their own."""
    build_noisy: Callable[[], LanguageModel] | None = None
    """The same with dropout and other noise as configured; None: there is none."""
    optimizer: OptimizerConfig = field(default_factory=AdamWConfig)
    """Whose updates must not be rounded away."""
    loader: Loader | None = None
    """Training text; None: no text is at hand."""
    splits: dict[str, Any] | None = None
    """The `TokenShards` of "train", "validation", "test"; None: no text is at hand."""
    trained: TrainedModel | None = None
    """None for a recipe."""
    prefix_lm: bool = False
    """Whether prompts are read both ways; answers must be hidden from what is before them."""
    thorough: bool = True
    """Whether a looped model is tried at every depth rather than at three."""
    accumulate: Callable[..., Any] = accumulate_gradients
    """The gradient of one update, from micro-batches."""
    evaluate: Callable[..., Any] = evaluate
    """The evaluator that reported losses come from."""

    def probe(self, *, seed: int = 1, noise_frac: float = 0.1) -> LanguageModel:
        """A float64 copy whose every weight is moved a little from where it starts.

        Weights that start at exactly 0 or 1, such as gates, could otherwise hide a fault.
        `noise_frac` is the size of the move as a share of the tensor's own size.
        """
        model = self.build().double()
        generator = new_generator(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                rms = parameter.square().mean().sqrt()
                parameter.add_(noise_frac * noise * torch.where(rms > 0, rms, 1.0))
        return model.eval()


@dataclass(frozen=True)
class Check:
    """One entry of the table of checks."""

    name: str
    question: str
    """What a pass answers with yes."""
    run: Callable[[CheckContext], Finding]
    is_quick: bool = False
    """Run before every training; must cost a fraction of a second on a small copy."""


def run_checks(checks: Sequence[Check], context: CheckContext) -> list[CheckResult]:
    """Run `checks` in order. Every draw has a generator of its own: the global state stays."""
    results = []
    with torch.random.fork_rng(devices=[]):
        for check in checks:
            torch.manual_seed(0)  # for modules that draw from the default generator
            results.append(CheckResult(check.name, check.question, check.run(context)))
    return results


# --- tokens in, numbers out ---------------------------------------------------------------------


def new_generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_tokens(model: nn.Module, batch: int, length: int, seed: int) -> Tensor:
    """(B, T) int64 tokens drawn evenly from the model's vocabulary."""
    generator = new_generator(seed)
    return torch.randint(vocab_size(model), (batch, length), generator=generator)


def other_tokens(model: nn.Module, tokens: Tensor, seed: int) -> Tensor:
    """Tokens of the same shape, of which each differs from the one in its place."""
    n = vocab_size(model)
    shift = torch.randint(1, n, tokens.shape, generator=new_generator(seed))
    return (tokens + shift) % n


def vocab_size(model: nn.Module) -> int:
    """Rows of the head."""
    return model.head_weight.shape[0]  # type: ignore[return-value,union-attr]


def logits_of(
    model: nn.Module, tokens: Tensor, segments: Tensor | None = None, loops: Loops | None = None,
    prefix: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """(B, T, vocab) by the way that training takes: the trunk, then the head.

    `prefix` (B, T) tells tokens of a prompt that is read both ways; they need `segments`, too.
    """
    packing = None if segments is None else Packing(segments, prefix)
    arguments = () if loops is None else (loops,)
    h = model.trunk(tokens, None, packing, *arguments).h
    return h @ model.head_weight.T.to(h.dtype)


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest absolute value of both; infinite where not finite."""
    if not (a.isfinite().all() and b.isfinite().all()):
        return float("inf")
    scale = max(a.abs().max().item(), b.abs().max().item())
    return (a - b).abs().max().item() / scale if scale else 0.0


def pristine(model: LanguageModel) -> LanguageModel:
    """A copy that shares nothing with `model`, for comparing calls on equal terms."""
    return copy.deepcopy(model)


def next_token_batch(tokens: Tensor) -> Batch:
    """(B, T + 1) tokens as a batch of one document per row."""
    inputs = tokens[:, :-1].contiguous()
    return Batch(inputs, tokens[:, 1:].contiguous(), torch.zeros_like(inputs, dtype=torch.int32))
