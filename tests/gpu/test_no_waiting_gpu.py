"""No update waits for the device: every kind of recipe, several updates, figures included."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from mixlab.checks.refinement.base import MadeUpPuzzles
from mixlab.data.batch import Batch
from mixlab.data.synthetic import RandomText
from mixlab.jobs.config import AnyRunConfig, RunConfig, load_config
from mixlab.nn.language_model import build_model
from mixlab.nn.recursion.refiner import build_refiner
from mixlab.training.ema import Ema
from mixlab.training.language_modelling import LanguageModelling
from mixlab.training.objective import Objective, update
from mixlab.training.optimizers import AdamWConfig, MuonConfig
from mixlab.training.readings import Reading
from mixlab.training.refinement import Refinement

pytestmark = pytest.mark.gpu

SMALL = ["train.batch_size=4", "train.micro_batch_size=2", "data.seq_len=128"]
PUZZLES = ["train.batch_size=8"]
BF16 = torch.bfloat16
# One recipe of each kind of layer; larger ones of the same kind would only take longer.
LANGUAGE_MODELS = [
    "quickstart", "attention-mlp", "hybrid-sparse-17", "gdn-small", "moe", "moe-recursive",
    "looped-lm",
]  # fmt: skip


@contextmanager
def nobody_waits() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def run_updates(objective: Objective, model, optimizer, n_examples: int) -> None:
    ema = Ema(model.named_parameters(), 0.99)
    model.train()
    pending = None

    def one(step: int) -> None:
        nonlocal pending
        metrics = update(objective, optimizer, step * n_examples, lr_factor=0.1, max_grad_norm=1.0)
        ema.update(step)
        if pending is not None:
            pending.figures()
        pending = Reading(metrics)

    try:
        for step in range(6):  # kernels are loaded and tuned, which may wait
            one(step)
        with nobody_waits():
            for step in range(6, 10):
                one(step)
        assert pending is not None
        assert torch.isfinite(torch.tensor(pending.figures().loss_nats))
    finally:
        objective.close()


def text_objective(config: RunConfig, model) -> LanguageModelling:
    return LanguageModelling(
        model,
        RandomText(config.model.vocab_size, config.data.seq_len, 1, mean_document=40),
        batch_size=config.train.batch_size,
        micro_batch_size=config.train.micro_batch_size,
        compute_dtype=BF16,
    )


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_language_models(name: str) -> None:
    config = load_config(name, SMALL)
    assert isinstance(config, RunConfig)
    model = build_model(config.model, 1).cuda()
    optimizer = config.train.optimizer.build(model.named_parameters())
    run_updates(text_objective(config, model), model, optimizer, config.train.batch_size)


class WithPrompts(RandomText):
    """The first tokens of every row are a prompt, which is read both ways."""

    def batch(self, position: int, n: int) -> Batch:
        found = super().batch(position, n)
        prefix = torch.zeros_like(found.tokens, dtype=torch.bool)
        prefix[:, :16] = True
        return found._replace(prefix=prefix)


def test_prompts_read_both_ways() -> None:
    config = load_config("quickstart", SMALL)
    model = build_model(config.model, 1).cuda()
    objective = LanguageModelling(
        model, WithPrompts(config.model.vocab_size, 128, 1), batch_size=4, compute_dtype=BF16
    )
    optimizer = config.train.optimizer.build(model.named_parameters())
    run_updates(objective, model, optimizer, 4)


@pytest.mark.parametrize("optimizer", [AdamWConfig(), MuonConfig()])
def test_a_loop_with_a_gate_and_a_loss_at_every_exit(optimizer) -> None:
    config = load_config(
        "looped-lm", [*SMALL, "model.recursion.halting={kind: gate}", "model.dropout=0.1",
                      "model.recursion.exit_loss_weight=0.5"],
    )  # fmt: skip
    model = build_model(config.model, 1).cuda()
    made = optimizer.build(model.named_parameters())
    run_updates(text_objective(config, model), model, made, config.train.batch_size)


@pytest.mark.parametrize(
    "halting",
    [
        "{kind: bce, halt_max_steps: 4}",
        "{kind: q_learning, halt_max_steps: 4}",
        "{kind: act, halt_max_steps: 3}",
        "{kind: ponder, halt_max_steps: 3}",
    ],
)
@pytest.mark.parametrize("name", ["sudoku-9x9", "trm-sudoku"])
def test_refiners(name: str, halting: str) -> None:
    config: AnyRunConfig = load_config(name, [*PUZZLES, f"model.halting={halting}"])
    model = build_refiner(config.model, 1).cuda()
    objective = Refinement(
        model, MadeUpPuzzles(config.model), batch_size=8, seed=1, compute_dtype=BF16
    )
    optimizer = config.train.optimizer.build(model.named_parameters())
    run_updates(objective, model, optimizer, 8)
