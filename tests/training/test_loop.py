"""The loop's decisions, with a model of one number and a clock that is told the time."""

import math

import pytest
import torch
from torch import nn

from mixlab.core.config import decode
from mixlab.data.batch import Batch
from mixlab.training.config import CheckpointConfig, EvalConfig, TrainConfig
from mixlab.training.loop import NonFiniteLossError, Plan, Progress, train
from mixlab.training.objective import StepMetrics

BASE = {"length": 10, "batch_size": 4, "optimizer": {"kind": "adamw", "lr": 1.0}}


class Model(nn.Module):
    """Stands where the loop asks for a device, a mode and weights."""

    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(2, 1)


class Loader:
    """Remembers which sequences were asked for."""

    def __init__(self):
        self.calls = []

    def batch(self, position, n):
        self.calls.append((position, n))
        tokens = torch.zeros(n, 3, dtype=torch.int64)
        return Batch(tokens, tokens, tokens.int())


class Record:
    """What the loop told its recorder, in order."""

    def __init__(self):
        self.rows, self.evals, self.saves, self.order = [], [], [], []
        self.spent_s = self.save_takes_s = 0.0

    def metrics(self, row):
        self.rows.append(row)
        self.order.append(f"m{row['step']}")

    def evaluation(self, row):
        self.evals.append(row)
        self.order.append(f"e{row['step']}")

    def checkpoint(self, progress, *, is_best):
        self.saves.append((progress.step, is_best))
        self.order.append(f"s{progress.step}")
        self.spent_s += self.save_takes_s


@pytest.fixture
def run():
    """Train with made-up losses; returns the outcome and everything that was recorded."""
    record, loader, factors = Record(), Loader(), []

    def start(losses=None, evals=None, progress=None, every=4, save=3, stop_at=None, **changes):
        cfg = decode(TrainConfig, {**BASE, **changes})
        n_steps = int(cfg.length.amount)
        plan = Plan(
            train=cfg, eval=EvalConfig(every=every), checkpoint=CheckpointConfig(every=save),
            n_steps=n_steps, flops_per_token=2.0, peak_flops=None,
            decay_start=cfg.schedule.decay_start(n_steps),
        )  # fmt: skip
        progress = progress or Progress()
        done = [progress.step]

        class Made:
            """An objective whose losses are given."""

            model = Model()

            def accumulate(self, position):
                done[0] += 1
                size = cfg.micro_batch_size or cfg.batch_size
                batches = [
                    loader.batch(i, size) for i in range(position, position + cfg.batch_size, size)
                ]
                loss = losses(done[0]) if losses else 1.0
                n_targets = sum(batch.n_targets() for batch in batches)
                figures = (torch.tensor(loss), torch.tensor(0.5), n_targets, None, {})
                return StepMetrics(*figures, n_examples=cfg.batch_size)

            def after_update(self):
                pass

        class Optimizer:
            def step(self, lr_factor, clip=None):
                factors.append(lr_factor)

            def zero_grad(self):
                pass

        outcome = train(
            Made(), Optimizer(), None, plan, progress,
            evaluate=lambda: {"loss_nats": evals(done[0]) if evals else 5.0 - 0.1 * done[0]},
            recorder=record, is_stop_requested=lambda: done[0] == stop_at,
            clock=lambda: 10.0 + done[0] + record.spent_s,
        )  # fmt: skip
        return outcome

    start.record, start.loader, start.factors = record, loader, factors
    return start


def test_what_happens_when(run):
    """Evaluated before the first step, every 4 and at the end; saved every 3 and when best."""
    outcome = run()
    assert outcome.status == "finished" and outcome.progress.step == 10
    assert " ".join(run.record.order) == (
        "e0 m1 m2 m3 s3 m4 e4 s4 m5 m6 s6 m7 m8 e8 s8 m9 s9 m10 e10 s10"
    )
    assert run.record.saves == [
        (3, False), (4, True), (6, False), (8, True), (9, False), (10, True)
    ]  # fmt: skip


def test_rows_count_tokens_flops_and_seconds(run):
    run(length=3)
    assert [row["tokens"] for row in run.record.rows] == [12, 24, 36]
    assert [row["flops"] for row in run.record.rows] == [24.0, 48.0, 72.0]
    assert [row["elapsed_s"] for row in run.record.rows] == [1.0, 2.0, 3.0]
    assert [row["elapsed_s"] for row in run.record.evals] == [0.0, 3.0]


def test_time_of_evaluations_and_saves_is_counted_apart(run):
    def evaluate(step):
        run.record.spent_s += 3.0
        return 5.0

    run.record.save_takes_s = 7.0
    progress = run(length=4, every=2, save=4, evals=evaluate).progress
    assert progress.eval_s == 3 * 3.0  # before the first step, after 2 and 4
    assert progress.save_s == 1 * 7.0
    assert progress.elapsed_s == 4.0 + 3 * 3.0 + 7.0


def test_sequences_are_drawn_in_order_and_once(run):
    run(length=3, micro_batch_size=2)
    assert run.loader.calls == [(0, 2), (2, 2), (4, 2), (6, 2), (8, 2), (10, 2)]


def test_going_on_draws_what_comes_next(run):
    run(length=3, progress=Progress(step=2, position=8, tokens=24, elapsed_s=2.0, last_eval_step=0))
    assert run.loader.calls == [(8, 4)]
    assert run.record.order == ["m3", "e3", "s3"], "no second evaluation at the start"
    assert run.record.rows[0]["elapsed_s"] == 3.0, "seconds of all sittings"


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        ({"length": 1}, [1.0]),
        ({"length": 1, "schedule": {"kind": "cosine", "warmup_steps": 1}}, [1.0]),
        ({"length": 1, "schedule": {"kind": "wsd", "decay_frac": 1}}, [1.0]),
        ({"length": 4, "schedule": {"kind": "linear", "warmup_steps": 4}}, [0.25, 0.5, 0.75, 1]),
        ({"length": 2, "schedule": {"kind": "constant", "warmup_steps": 4}}, [0.25, 0.5]),
        ({"length": 4, "schedule": {"kind": "linear"}}, [1.0, 0.75, 0.5, 0.25]),
        ({"length": 4, "schedule": {"kind": "wsd", "decay_frac": 0.5}}, [1.0, 1.0, 1.0, 0.5]),
    ],
)
def test_corners_of_schedules(settings, want, run):
    assert run(**settings).status == "finished"
    assert run.factors == pytest.approx(want)
    assert [row["lr"] for row in run.record.rows] == pytest.approx(want)


def test_the_start_of_the_decay_is_saved(run):
    run(save=100, every=100, schedule={"kind": "wsd", "decay_frac": 0.4})
    assert [step for step, _ in run.record.saves] == [6, 10]


def test_a_stop_saves_first(run):
    outcome = run(stop_at=5)
    assert outcome.status == "interrupted" and outcome.progress.step == 5
    assert run.record.order[-2:] == ["m5", "s5"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_never_saved(bad, run):
    with pytest.raises(NonFiniteLossError, match="step 6: the loss is"):
        run(losses=lambda step: bad if step == 6 else 1.0)
    assert run.record.order[-1] == "m5" and run.record.saves[-1][0] == 4


def test_a_validation_loss_that_is_not_finite(run):
    with pytest.raises(NonFiniteLossError, match="step 8: the validation loss is nan"):
        run(evals=lambda step: math.nan if step == 8 else 1.0)
    assert run.record.saves[-1][0] == 6


# --- early stopping -------------------------------------------------------------------------------

VALLEY = {0: 9.0, 2: 5.0, 4: 4.0, 6: 4.5, 8: 4.2, 10: 4.1, 12: 3.0}


def test_stops_after_so_many_evaluations_without_improvement(run):
    outcome = run(evals=VALLEY.get, every=2, length=12, early_stopping={"patience": 2})
    assert (outcome.status, outcome.progress.step) == ("stopped early", 8)
    assert outcome.progress.best_step == 4 and outcome.progress.best_loss_nats == 4.0
    assert run.record.order[-1] == "s8"


def test_enough_patience_sees_the_end_of_the_valley(run):
    outcome = run(evals=VALLEY.get, every=2, length=12, early_stopping={"patience": 4})
    assert (outcome.status, outcome.progress.best_step) == ("finished", 12)


def test_without_it_nothing_stops(run):
    assert run(evals=VALLEY.get, every=2, length=12).status == "finished"


def test_an_improvement_must_be_large_enough(run):
    """Down by 0.1 a time: never an improvement of 0.5 at once, so the first losses count."""
    stopping = {"patience": 2, "min_delta": 0.5}
    outcome = run(evals=lambda step: 5 - step / 20, every=2, early_stopping=stopping)
    assert (outcome.status, outcome.progress.step) == ("stopped early", 4)
    assert outcome.progress.best_step == 4, "the best is still the lowest"


def test_a_run_that_had_stalled_does_not_go_on(run):
    stalled = Progress(
        step=4, position=16, best_loss_nats=1.0, best_step=0, evals_without_improvement=2,
        last_eval_step=4,
    )  # fmt: skip
    outcome = run(progress=stalled, early_stopping={"patience": 2})
    assert (outcome.status, outcome.progress) == ("stopped early", stalled)
    assert run.record.order == []


def test_a_stall_at_the_last_step_is_a_finished_run(run):
    outcome = run(evals=lambda step: 1.0, every=5, early_stopping={"patience": 2})
    assert outcome.status == "finished"
