"""Checks that a model, its training and its data are what they claim to be."""

from mixlab.checks.base import (
    Check,
    CheckContext,
    CheckResult,
    Finding,
    TrainedModel,
    run_checks,
)
from mixlab.checks.batch_rows import check_batch_rows
from mixlab.checks.causality import check_causality
from mixlab.checks.evaluator import check_evaluator
from mixlab.checks.gradient_reach import check_gradient_reach
from mixlab.checks.initial_loss import check_unigram
from mixlab.checks.input_use import check_input_use
from mixlab.checks.labels import check_labels
from mixlab.checks.loss_mean import check_loss_mean
from mixlab.checks.master_weights import check_master_weights
from mixlab.checks.memory_between_calls import check_memory_between_calls
from mixlab.checks.modes import check_modes
from mixlab.checks.packing import check_packing
from mixlab.checks.split_overlap import check_split_overlap
from mixlab.checks.stepwise import check_stepwise

__all__ = [
    "CHECKS",
    "Check",
    "CheckContext",
    "CheckResult",
    "Finding",
    "TrainedModel",
    "run_checks",
]

_ALL = (
    Check("modes", "Does evaluation switch noise off, and nothing else?", check_modes,
          is_quick=True),
    Check("causality", "Is every output blind to later tokens?", check_causality, is_quick=True),
    Check("stepwise", "Is text written by the function that is trained?", check_stepwise,
          is_quick=True),
    Check("batch-rows", "Is a sequence independent of its batch mates?", check_batch_rows,
          is_quick=True),
    Check("memory", "Does nothing survive from one batch to the next?", check_memory_between_calls,
          is_quick=True),
    Check("packing", "Are documents that share a row kept apart?", check_packing, is_quick=True),
    Check("gradients", "Does training reach every parameter?", check_gradient_reach,
          is_quick=True),
    Check("labels", "Is the target the next token?", check_labels, is_quick=True),
    Check("loss-mean", "Does every target token count alike?", check_loss_mean, is_quick=True),
    Check("master-weights", "Do updates survive rounding?", check_master_weights, is_quick=True),
    Check("evaluator", "Are reported losses exact?", check_evaluator, is_quick=True),
    Check("unigram", "Does the loss stand where it should?", check_unigram, is_quick=True),
    Check("input-use", "Does the model use its input?", check_input_use),
    Check("split", "Is held-out text absent from training?", check_split_overlap),
)  # fmt: skip

CHECKS: dict[str, Check] = {check.name: check for check in _ALL}
"""Every check by its name, in the order in which they run."""
