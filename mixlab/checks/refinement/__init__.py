"""The checks of a refiner, under the names of the checks of language models where both ask alike.

What a language model is asked and a refiner cannot be is listed with the reason.
"""

from mixlab.checks.refinement.answers import check_evaluator, check_labels, check_stepwise
from mixlab.checks.refinement.base import RefinerCheck, RefinerContext, TrainedRefiner
from mixlab.checks.refinement.learning import (
    check_gradients,
    check_halting,
    check_loss_mean,
    check_updates,
)
from mixlab.checks.refinement.rows import (
    check_carry,
    check_memory,
    check_modes,
    check_rows,
)
from mixlab.checks.refinement.trained import check_input_use, check_splits, check_start

__all__ = [
    "NOT_ASKED",
    "REFINER_CHECKS",
    "RefinerCheck",
    "RefinerContext",
    "TrainedRefiner",
]

_ALL = (
    RefinerCheck("modes", "Does evaluation switch noise off, and nothing else?", check_modes),
    RefinerCheck("stepwise", "Is a puzzle solved by the function that is trained?", check_stepwise),
    RefinerCheck("batch-rows", "Is a puzzle independent of its batch mates, early exits included?",
                 check_rows),
    RefinerCheck("memory", "Does nothing survive from one set of puzzles to the next?",
                 check_memory),
    RefinerCheck("carry", "Does an example stay until it halts, with its own state?", check_carry),
    RefinerCheck("gradients", "Does training reach every parameter?", check_gradients),
    RefinerCheck("halting", "Is halting trained, and does it obey its head?", check_halting),
    RefinerCheck("labels", "Is the target the answer, and out of the model's sight?", check_labels),
    RefinerCheck("loss-mean", "Does every puzzle count alike?", check_loss_mean),
    RefinerCheck("master-weights", "Do updates survive rounding?", check_updates),
    RefinerCheck("evaluator", "Are reported figures exact?", check_evaluator),
    RefinerCheck("unigram", "Does the loss stand where it should?", check_start),
    RefinerCheck("input-use", "Does the answer depend on the question?", check_input_use),
    RefinerCheck("split", "Are held-out puzzles absent from training?", check_splits),
)  # fmt: skip

REFINER_CHECKS: dict[str, RefinerCheck] = {check.name: check for check in _ALL}
"""Every check by its name, in the order in which they run."""

NOT_ASKED: dict[str, str] = {
    "causality": "A refiner sees the whole question and gives the whole answer at once: there are "
    "no later tokens to be blind to. That it cannot see its answer is checked by `labels`.",
    "packing": "A row holds one puzzle: nothing shares it.",
}
"""Checks of language models that say nothing about a refiner, and why."""
