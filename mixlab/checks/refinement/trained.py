"""Where the loss stands, whether the question is used, and whether the splits are apart."""

import math

import numpy as np
import torch

from mixlab.checks.base import Finding
from mixlab.checks.refinement.answers import oracle_nats
from mixlab.checks.refinement.base import (
    MadeUpPuzzles,
    RefinerContext,
    TrainedRefiner,
    questions,
    relative,
)
from mixlab.infer.refinement import Refining
from mixlab.nn.recursion.refiner import Refiner
from mixlab.tasks.sets import prove_disjoint

MAX_ABOVE_NATS = 1.0
MAX_BELOW_NATS = 0.2
"""Of ln V, before training: logits of unit variance cost half a nat, and a few hundred labels that
are drawn at random are off by a few hundredths."""
MIN_INFLUENCE = 1e-3
"""Of the logits' size. An untrained model that reads its question is moved by about 1; one that
does not, by rounding: 1e-16."""
MIN_GAP_NATS, MIN_GAP_ERRORS = 0.05, 4
N_PUZZLES = 100


def check_start(context: RefinerContext) -> Finding:
    """A run: its blank cells against the likeliest answer. A recipe: first loss against ln V."""
    if context.trained is not None:
        return _against_guessing(context.trained)
    model = context.build().double().eval()
    inputs = questions(model, 300)
    labels = torch.from_numpy(MadeUpPuzzles(model.cfg).batch(300, len(inputs)).labels).long()
    with torch.no_grad():
        logits = Refining(model, inputs).advance().logits
    loss = float(oracle_nats(logits, labels, context.loss_type).mean())
    uniform = math.log(model.cfg.vocab_size)
    measured = f"loss {loss:.3f} before training, uniform guessing {uniform:.3f} nats"
    figures = {"initial_loss_nats": loss, "ln_vocab_nats": uniform}
    if -MAX_BELOW_NATS <= loss - uniform <= MAX_ABOVE_NATS:
        return Finding("pass", measured, "The model starts without an opinion.", figures)
    meaning = (
        "Random labels cannot be known: the model sees its answers."
        if loss < uniform
        else "The first logits are far too large: training begins by unlearning them."
    )
    return Finding("fail", measured, meaning, figures)


def _against_guessing(run: TrainedRefiner) -> Finding:
    puzzles = run.puzzles
    blank = (puzzles.labels != 0) & ~puzzles.given
    guess = float(np.bincount(puzzles.labels[blank]).max() / blank.sum())
    answers, _ = _answers(run.model, puzzles.inputs, puzzles.labels)
    right = float((answers == puzzles.labels)[blank].mean())
    measured = (
        f"{100 * right:.1f} % of the blank cells of {len(blank)} validation puzzles are right; the "
        f"most frequent answer would be in {100 * guess:.1f} %"
    )
    figures = {"blank_accuracy": right, "most_frequent": guess}
    error = math.sqrt(guess * (1 - guess) / max(1, int(blank.sum())))
    if right > guess + max(0.02, MIN_GAP_ERRORS * error):
        meaning = "No model that ignores its question is right so often."
        return Finding("pass", measured, meaning, figures)
    meaning = "Training has not come to where questions are of use; train longer to tell."
    return Finding("not applicable", measured, meaning, figures)


def check_input_use(context: RefinerContext) -> Finding:
    """A run: loss on its own questions and on others. A recipe: whether logits move."""
    if context.trained is not None:
        return _swapped(context.trained)
    model = context.probe()
    inputs = questions(model, 400)
    with torch.no_grad():
        here, there = Refining(model, inputs), Refining(model, inputs.roll(1, dims=0))
        moved = relative(here.advance().logits, there.advance().logits)
    measured = f"other questions move the logits by {moved:.1e} of their size"
    figures = {"influence": moved}
    if moved > MIN_INFLUENCE:
        return Finding("pass", measured, "The question reaches the answer.", figures)
    meaning = "The answer is the same whatever is asked: the question does not reach it."
    return Finding("fail", measured, meaning, figures)


def _swapped(run: TrainedRefiner) -> Finding:
    puzzles = run.puzzles
    _, true = _answers(run.model, puzzles.inputs, puzzles.labels)
    _, other = _answers(run.model, np.roll(puzzles.inputs, 1, axis=0), puzzles.labels)
    gaps = other - true
    gap, error = float(gaps.mean()), float(gaps.std(ddof=1)) / math.sqrt(max(1, len(gaps)))
    measured = (
        f"validation loss {true.mean():.3f} nats on its own questions, {other.mean():.3f} on those "
        "of other puzzles"
    )
    figures = {"true_nats": float(true.mean()), "other_nats": float(other.mean()), "gap": gap}
    if gap > max(MIN_GAP_NATS, MIN_GAP_ERRORS * error):
        return Finding("pass", measured, "The answer is an answer to the question.", figures)
    if float(np.abs(gaps).mean()) > MIN_INFLUENCE * float(true.mean()):
        meaning = "The question reaches the answer, but is not of use yet; train longer to tell."
        return Finding("not applicable", measured, meaning, figures)
    meaning = "The question makes no difference: the model answers without looking at it."
    return Finding("fail", measured, meaning, figures)


@torch.no_grad()
def _answers(
    model: Refiner, inputs: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Answers (n, L) and loss (n,) at the trained depth."""
    device = model.embed_tokens.device
    solving = Refining(model.eval(), torch.from_numpy(inputs).long().to(device))
    for _ in range(model.cfg.halting.halt_max_steps):
        step = solving.advance()
    logits = step.logits.cpu()
    nats = oracle_nats(logits, torch.from_numpy(labels).long(), "softmax")
    return logits.argmax(dim=-1).numpy(), nats


def check_splits(context: RefinerContext) -> Finding:
    """Canonical forms of all sets, and of training puzzles as augmentation shows them."""
    task, sets = context.task, context.sets
    if task is None or sets is None:
        return Finding(
            "not applicable", "no puzzles were made",
            "A recipe alone has no puzzles; check a run, or add --data to make the recipe's.", {},
        )  # fmt: skip
    pairs = (("train", "validation"), ("train", "test"), ("validation", "test"))
    counts = {f"{a}, {b}": prove_disjoint(task, sets[a], sets[b]) for a, b in pairs}
    some = sets["train"]
    shown = task.augment(some.inputs[:500], some.labels[:500], 1, np.arange(len(some.inputs[:500])))
    held_out = {
        key
        for name in ("validation", "test")
        for key in task.split_keys(sets[name].inputs, sets[name].labels)
    }
    astray = sum(key in held_out for key in task.split_keys(*shown))
    measured = (
        f"{len(sets['train'])} training, {len(sets['validation'])} validation and "
        f"{len(sets['test'])} test puzzles: none equivalent to one of another set; {astray} of "
        f"{len(shown[0])} augmented training puzzles are held-out ones"
    )
    figures = {"pairs": counts, "augmented_astray": astray, "symmetries": task.symmetries}
    if astray == 0:
        meaning = "Held-out puzzles are new to the model, also up to symmetry."
        return Finding("pass", measured, meaning, figures)
    meaning = "Augmentation shows held-out puzzles in training: accuracy on them measures memory."
    return Finding("fail", measured, meaning, figures)
