"""Fitting an update into memory: what is tried, what is chosen, and what a failure says."""

import json

import pytest
import torch
from screens import Quiet

from mixlab.core.errors import ConfigError
from mixlab.jobs import kinds, memory
from mixlab.jobs.config import load_config
from mixlab.jobs.device import Hardware
from mixlab.jobs.memory import Trial, choose, fit_memory

SIZES = [1, 2, 3, 4, 6, 8, 12, 16, 24, 48]


class Card:
    """A GPU on which memory grows in a line, and which remembers what was tried."""

    def __init__(self, base, per_sequence, saving=0.2, slower=1.3, start_s=0.0):
        self.base, self.per_sequence, self.saving = base, per_sequence, saving
        self.slower, self.start_s = slower, start_s
        self.tried = []

    def measure(self, n, recomputes):
        self.tried.append((n, recomputes))
        each = self.per_sequence * (self.saving if recomputes else 1)
        seconds = self.start_s + n * (self.slower if recomputes else 1)
        return Trial(round(1000 * (self.base + n * each)), seconds)


def chosen(card, budget, recomputes=False, whole=False, sizes=SIZES):
    found = choose(card.measure, sizes, 1000 * budget, recomputes=recomputes, whole=whole)
    return None if found is None else (found.micro_batch_size, found.recomputes)


def test_a_batch_that_fits_stays_whole():
    card = Card(10, 1)
    assert chosen(card, 100) == (48, False)
    assert card.tried == [(1, False), (2, False), (48, False)]


def test_the_faster_way_is_taken_where_it_does_not_fit():
    assert chosen(Card(10, 1), 30) == (16, False)  # recomputing costs 30 % more
    # With a start that every pass pays for, few passes with recomputing are faster.
    assert chosen(Card(10, 4, start_s=4.0), 55) == (48, True)


def test_recomputing_is_kept_where_it_was_asked_for():
    assert chosen(Card(10, 1), 100, recomputes=True) == (48, True)


def test_a_loss_over_the_whole_batch_keeps_it_whole():
    assert chosen(Card(10, 1), 30, whole=True) == (48, True)
    assert chosen(Card(10, 1, saving=0.9), 30, whole=True) == (16, False)  # not whole either way


def test_a_line_that_bends_is_found_by_trying():
    class Bent(Card):
        def measure(self, n, recomputes):
            found = super().measure(n, recomputes)
            if n > 12:
                return None  # out of memory
            return found._replace(n_bytes=found.n_bytes + (5000 if n > 6 else 0))

    card = Bent(10, 1, slower=9)
    assert chosen(card, 26) == (8, False)
    assert [n for n, recomputes in card.tried if not recomputes] == [1, 2, 16, 12, 8]


def test_nothing_fits():
    assert chosen(Card(100, 1), 50) is None
    assert chosen(Card(10, 100), 45) == (1, True)


def test_one_sequence_per_update():
    assert chosen(Card(10, 1), 50, sizes=[1]) == (1, False)


@pytest.mark.parametrize("memory", ["auto", "24"])
def test_on_a_cpu_everything_stays_as_it_is(tiny_recipe, memory):
    config = load_config(str(tiny_recipe), [f"train.memory={memory}", "train.micro_batch_size=2"])
    screen = Quiet()
    assert fit_memory(config, Hardware(torch.device("cpu"), "fp32"), screen) == config
    assert any("does nothing here" in note for note in screen.notes)


def test_micro_batches_and_recomputing_change_no_figure(train_tiny, lab):
    """Three ways to cut the same updates, to rounding."""
    rows = []
    for i, settings in enumerate(
        ([], ["train.micro_batch_size=2"], ["train.activation_checkpointing=true"])
    ):
        train_tiny(*settings, "train.memory=auto", "train.length=4", name=f"run-{i}")
        lines = (lab / f"run-{i}" / "metrics.jsonl").read_text().splitlines()
        rows.append([(r["loss_nats"], r["grad_norm"]) for r in map(json.loads, lines)])
    assert rows[2] == rows[0]
    for row, want in zip(rows[1], rows[0], strict=True):
        assert row == pytest.approx(want, rel=2e-6)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes."),
    ],
)
def test_an_update_that_does_not_fit_says_what_to_set(error, train_tiny, lab, monkeypatch):
    kind = kinds.KINDS["language_model"]

    def opened(*args):
        session = kind.open_session(*args)

        def accumulate(position):
            raise error

        session.objective.accumulate = accumulate
        return session

    monkeypatch.setitem(kinds.KINDS, "language_model", kind._replace(open_session=opened))
    with pytest.raises(ConfigError) as caught:
        train_tiny()
    message = str(caught.value)
    assert message.startswith("train.batch_size = 4: expected an update that fits into memory")
    assert str(error).split(".")[0] in message and "train.micro_batch_size" in message
    summary = json.loads((lab / "run" / "summary.json").read_text())
    assert summary["status"] == "failed" and summary["error"] == message


@pytest.mark.parametrize("value", ["lots", "-3", "0", "true", ".inf", "[1]"])
def test_what_is_no_amount_is_refused(tiny_recipe, value):
    with pytest.raises(
        ConfigError, match=r"^train\.memory = .*: expected auto(, a number of GB| or a number)"
    ):
        load_config(str(tiny_recipe), [f"train.memory={value}"])


def test_a_refiner_says_why_not():
    for key, value in (("memory", "auto"), ("activation_checkpointing", "true")):
        with pytest.raises(ConfigError, match=rf"train\.{key}.*carry belongs to the whole batch"):
            load_config("sudoku-4x4", [f"train.{key}={value}"])


class MadeUpCard:
    """CUDA's questions about memory, answered for a card that is not there."""

    def __init__(self, monkeypatch, *, total, base, per_sequence, saving=0.25):
        self.total, self.base, self.peak = total, base, base
        self.per_sequence, self.saving, self.tried = per_sequence, saving, []
        self._accumulate = memory.accumulate_gradients
        answers = {
            "mem_get_info": lambda device: (total - base, total),
            "memory_reserved": lambda device: base,
            "max_memory_allocated": lambda device: self.peak,
            "reset_peak_memory_stats": lambda device: setattr(self, "peak", base),
            "synchronize": lambda device: None,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, answer)
        self.now_s = 0.0
        monkeypatch.setattr(memory.time, "perf_counter", lambda: self.now_s)
        monkeypatch.setattr(memory, "accumulate_gradients", self.accumulate)
        monkeypatch.setattr(memory.MicroBatch, "of", lambda batch, pinned: self.unpinned(batch))

    unpinned = staticmethod(memory.MicroBatch.of)

    def accumulate(self, model, batches, **settings):
        n = len(batches[0].batch.tokens)
        self.tried.append((n, model.recomputes))
        self.now_s += n * (1.3 if model.recomputes else 1.0)
        each = self.per_sequence * (self.saving if model.recomputes else 1)
        self.peak = max(self.peak, round(self.base + n * each))
        if self.peak > self.total:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self._accumulate(model, batches, **settings)


def test_the_peak_of_a_run_leaves_out_what_came_before(monkeypatch):
    card = MadeUpCard(monkeypatch, total=64 * memory.GB, base=3, per_sequence=1)
    card.peak = 70  # of trials
    gpu = torch.device("cuda")
    assert memory.peak_memory_bytes(gpu) == 70
    memory.forget_peak(gpu)
    assert memory.peak_memory_bytes(gpu) == 3
    memory.forget_peak(torch.device("cpu"))
    assert memory.peak_memory_bytes(torch.device("cpu")) is None


def tried_on(card_of, tiny_recipe, *settings):
    """What the trials of a real model choose, on a card with made-up memory."""
    config = load_config(str(tiny_recipe), ["train.batch_size=8", "train.memory=auto", *settings])
    card = card_of()
    hardware = Hardware(torch.device("cpu"), "fp32")
    return card, memory._Trials(config, hardware).choice()


@pytest.mark.parametrize(
    ("total", "choice"), [(1e9, (8, False)), (0.5e9, (4, False)), (0.22e9, (4, True))]
)
def test_trials_of_a_real_model(total, choice, tiny_recipe, monkeypatch):
    def card_of():
        return MadeUpCard(monkeypatch, total=total, base=0.1e9, per_sequence=0.08e9)

    settings = ["train.activation_checkpointing=true"] if choice[1] else []
    card, found = tried_on(card_of, tiny_recipe, *settings)
    assert (found.micro_batch_size, found.recomputes) == choice
    assert found.trial.n_bytes <= 0.92 * total and found.trial.seconds > 0
    assert card.tried.count((choice[0], choice[1])) == 2  # one to warm up, one that counts


def test_a_model_that_cannot_fit_is_refused(tiny_recipe, monkeypatch):
    def card_of():
        return MadeUpCard(monkeypatch, total=0.12e9, base=0.1e9, per_sequence=0.2e9)

    with pytest.raises(ConfigError, match=r"train\.memory = 'auto': expected enough for the model"):
        tried_on(card_of, tiny_recipe)


def test_what_was_chosen_is_settled_and_told(tiny_recipe, monkeypatch):
    experts = "{kind: moe, n_experts: 4, n_active_experts: 2, d_expert: 8}"
    config = load_config(
        str(tiny_recipe), [f"model.blocks.full.channel_mixer={experts}", "train.memory=24"]
    )
    limits = []
    monkeypatch.setattr(memory, "limit_memory", lambda train, hardware: limits.append(train.memory))
    choice = memory.Choice(2, True, Trial(3 * memory.GB, 0.1))
    monkeypatch.setattr(memory._Trials, "choice", lambda self: choice)
    screen = Quiet()
    fitted = fit_memory(config, Hardware(torch.device("cuda"), "bf16"), screen)
    assert limits == [24.0]
    assert (fitted.train.micro_batch_size, fitted.train.activation_checkpointing) == (2, True)
    assert fitted.train.memory == 24.0  # whoever resumes is held to it as well
    [note] = screen.notes
    assert "in 2 passes of 2 sequences, activations computed again" in note and "3.0 GiB" in note
    assert "balance loss" in note
