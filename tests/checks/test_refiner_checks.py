"""Sound refiners pass; every broken one is caught by the check that was made for it."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from mixlab.checks import CHECKS
from mixlab.checks.refinement import NOT_ASKED, REFINER_CHECKS, RefinerContext, TrainedRefiner
from mixlab.core.config import decode
from mixlab.nn.recursion.refiner import Refiner, RefinerConfig, build_refiner
from mixlab.tasks.examples import Puzzles
from mixlab.tasks.sets import TaskSet, build_set
from mixlab.tasks.sudoku.dug import SudokuDug
from mixlab.training.carry import SegmentLoss
from mixlab.training.refinement import Refinement
from mixlab.training.refinement_figures import row_nats

ATTENTION = {"kind": "attention", "n_heads": 2, "head_dim": 4, "rope_frac": 0.0}
MIXERS = {"attention": ATTENTION, "token_mlp": {"kind": "token_mlp", "d_ff": 12}}
HALTING = ("fixed", "bce", "q_learning", "act", "ponder")
TASK = SudokuDug(size=4, blanks=(4, 6))


def config(mixer="attention", halting="bce", **changes) -> RefinerConfig:
    block = {"sequence_mixer": MIXERS[mixer], "channel_mixer": {"kind": "mlp", "d_ff": 12}}
    halting = {"kind": halting, "halt_max_steps": 5, "halt_min_steps": 2}
    return decode(
        RefinerConfig,
        {
            "vocab_size": 6, "grid": [4, 4], "box": [2, 2], "d_model": 8, "H_cycles": 2,
            "L_cycles": 2, "block": block, "halting": halting, **changes,
        },
    )  # fmt: skip


def context(make=None, **changes) -> RefinerContext:
    cfg = config(**changes)
    return RefinerContext(build=lambda: (make or (lambda c: build_refiner(c, 1)))(cfg))


@pytest.mark.parametrize(
    "changes",
    [
        *({"halting": kind} for kind in HALTING),
        {"mixer": "token_mlp"},
        {"H_layers": 1, "norm_placement": "pre", "num_registers": 0},
        {"state_init": "learned", "grad_cycles": 2},
        {"state_init": "input", "L_cycles": 0, "H_cycles": 1, "positions": "learned"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_sound_refiners_pass(changes):
    found = {name: check.run(context(**changes)) for name, check in REFINER_CHECKS.items()}
    assert found.pop("split").verdict == "not applicable"
    assert {name: f.measured for name, f in found.items() if f.verdict != "pass"} == {}


def test_every_check_of_language_models_is_asked_or_refused():
    assert set(CHECKS) <= set(REFINER_CHECKS) | set(NOT_ASKED)
    assert not set(REFINER_CHECKS) & set(NOT_ASKED)


# --- broken models ------------------------------------------------------------------------------


class MixesRows(Refiner):
    def embed(self, inputs):
        x = super().embed(inputs)
        return x + 0.01 * x.mean(dim=0, keepdim=True)


class Remembers(Refiner):
    last = 0.0

    def embed(self, inputs):
        x = super().embed(inputs)
        x, self.last = x + 0.1 * self.last, x.detach().mean()
        return x


class AlwaysDrops(Refiner):
    def embed(self, inputs):
        return torch.nn.functional.dropout(super().embed(inputs), 0.05, training=True)


class ScalesInTraining(Refiner):
    def embed(self, inputs):
        return super().embed(inputs) * (1.1 if self.training else 1.0)


class IgnoresItsQuestion(Refiner):
    def embed(self, inputs):
        return super().embed(torch.ones_like(inputs))


class DeafHead(Refiner):
    def halt(self, state):
        return super().halt(state).detach()


class StuckHead(Refiner):
    def halt(self, state):
        return super().halt(state) * 1e-3 + 5.0


class FrozenRegisters(Refiner):
    def embed(self, inputs):
        x = super().embed(inputs)
        return torch.cat([x[:, :1].detach(), x[:, 1:]], dim=1)


class Loud(Refiner):
    def __init__(self, cfg):
        super().__init__(cfg)
        torch.nn.init.normal_(self.lm_head.weight, std=4.0)


@dataclass(frozen=True)
class OtherTraining(RefinerContext):
    """A context whose training is a broken one."""

    kind: type[Refinement] = Refinement

    def objective(self, model, *, batch_size=4):
        sound = super().objective(model, batch_size=batch_size)
        sound.__class__ = self.kind
        return sound


class KeepsNoState(Refinement):
    def _admit(self, examples):
        return self._begun(examples)._replace(inputs=super()._admit(examples).inputs)


class LearnsItsInput(Refinement):
    def _segment_loss(self, carry):
        result = super()._segment_loss(carry)
        nats = row_nats(result.segment.logits, carry.inputs, self._loss_type)
        return result._replace(lm_loss=nats, loss=result.loss - result.lm_loss + nats)


class SeesItsAnswer(Refinement):
    def _segment_loss(self, carry):
        return super()._segment_loss(carry._replace(inputs=carry.labels))


class CountsLabels(Refinement):
    """A mean over the labels of the batch, not over its puzzles."""

    def _segment_loss(self, carry) -> SegmentLoss:
        result = super()._segment_loss(carry)
        n = (carry.labels != 0).sum(dim=1)
        return result._replace(loss=result.loss * n / n.float().mean())


class GoesAnotherWay(Refinement):
    def _next(self, carry, result):
        carry, wants = super()._next(carry, result)
        return carry._replace(z_H=carry.z_H.roll(1, dims=1)), wants


MODELS = {
    "batch-rows": MixesRows, "memory": Remembers, "input-use": IgnoresItsQuestion,
    "gradients": FrozenRegisters, "unigram": Loud,
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_broken_model_is_caught(name):
    assert REFINER_CHECKS[name].run(context(MODELS[name])).verdict == "fail"


@pytest.mark.parametrize("kind", [AlwaysDrops, ScalesInTraining])
def test_an_evaluation_that_is_not_the_trained_model_is_caught(kind):
    assert REFINER_CHECKS["modes"].run(context(kind)).verdict == "fail"


@pytest.mark.parametrize("kind", [DeafHead, StuckHead])
def test_a_broken_head_is_caught(kind):
    assert REFINER_CHECKS["halting"].run(context(kind)).verdict == "fail"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("carry", KeepsNoState), ("labels", LearnsItsInput), ("labels", SeesItsAnswer),
     ("loss-mean", CountsLabels), ("stepwise", GoesAnotherWay)],
)  # fmt: skip
def test_broken_training_is_caught(name, kind):
    broken = OtherTraining(build=context().build, kind=kind)
    assert REFINER_CHECKS[name].run(broken).verdict == "fail"


# --- puzzles and runs ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sets() -> dict[str, TaskSet]:
    return {name: build_set(TASK, name, 12, 1) for name in ("train", "validation", "test")}


def test_splits(sets):
    whole = replace(context(), task=TASK, sets=sets)
    found = REFINER_CHECKS["split"].run(whole)
    assert found.verdict == "pass" and found.figures["augmented_astray"] == 0
    labels = REFINER_CHECKS["labels"].run(whole)
    assert labels.verdict == "pass" and labels.figures["contradictions"] == 0


def test_answers_that_break_the_rules_are_caught(sets):
    wrong = replace(sets["train"], labels=sets["train"].labels[::-1].copy())
    found = REFINER_CHECKS["labels"].run(replace(context(), task=TASK, sets={"train": wrong}))
    assert found.verdict == "fail" and found.figures["contradictions"] > 0


class KnowsTheAnswers(Refiner):
    """Gives the stored answer to each of its questions; to others, what it gives by chance."""

    known: dict[bytes, np.ndarray]

    def forward(self, state, inputs):
        out = super().forward(state, inputs)
        rows = [self.known.get(row.tobytes(), row) for row in inputs.numpy().astype(np.uint8)]
        answers = torch.from_numpy(np.stack(rows)).long()
        return out._replace(logits=5.0 * torch.nn.functional.one_hot(answers, 6).float())


def test_a_trained_run_is_held_against_guessing_and_other_questions(sets):
    some = sets["validation"]
    puzzles = Puzzles(some.inputs, some.labels, some.given)
    clever = KnowsTheAnswers(config())
    clever.known = {x.tobytes(): y for x, y in zip(some.inputs, some.labels, strict=True)}
    for model, verdicts in (
        (clever, ("pass", "pass")),
        (build_refiner(config(), 1), ("not applicable", "not applicable")),
        (IgnoresItsQuestion(config()), ("not applicable", "fail")),
    ):
        asked = replace(context(), trained=TrainedRefiner(model, puzzles))
        found = [REFINER_CHECKS[name].run(asked) for name in ("unigram", "input-use")]
        assert tuple(f.verdict for f in found) == verdicts, [f.measured for f in found]
