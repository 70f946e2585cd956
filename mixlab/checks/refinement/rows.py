"""Rows of a batch: nothing passes between puzzles, or from one example to the next."""

import copy

import torch

from mixlab.checks.base import Finding
from mixlab.checks.refinement.base import (
    N_ROWS,
    TOLERANCE,
    RefinerContext,
    questions,
    relative,
)
from mixlab.infer.refinement import Refining, solve


@torch.no_grad()
def check_modes(context: RefinerContext) -> Finding:
    """The same puzzles twice, and once more in training mode."""
    model = context.probe()
    inputs = questions(model, 0)
    n_steps = min(model.cfg.halting.halt_max_steps, 2)
    first, second = (solve(model, inputs, max_steps=n_steps) for _ in range(2))
    trained = solve(model.train(), inputs, max_steps=n_steps)
    noise, modes = (relative(first.scores, other.scores) for other in (second, trained))
    measured = (
        f"scores of the same puzzles differ by {noise:.1e} of their size the second time, and by "
        f"{modes:.1e} in training mode"
    )
    figures = {"twice": noise, "modes": modes}
    if max(noise, modes) <= TOLERANCE:
        return Finding("pass", measured, "What is measured is what was trained.", figures)
    meaning = (
        "What is measured and used is not what is trained: look for noise or a factor that "
        "evaluation mode does not switch."
    )
    return Finding("fail", measured, meaning, figures)


@torch.no_grad()
def check_rows(context: RefinerContext) -> Finding:
    """Each puzzle alone against all together, with a threshold at which some leave early."""
    model = context.probe()
    model.cfg = model.cfg.model_copy(update={"H_cycles": 1, "grad_cycles": 1})
    inputs = questions(model, 0)
    n_steps = min(model.cfg.halting.halt_max_steps, 2)
    first = Refining(model, inputs).advance().score.sort().values
    middle = N_ROWS // 2  # half of them exit; no score lies on the threshold itself
    threshold = float(first[middle - 1 : middle + 1].mean())
    together = solve(model, inputs, max_steps=n_steps, exit_threshold=threshold)
    worst, is_same = 0.0, True
    for row in range(N_ROWS):
        one = inputs[row : row + 1]
        alone = solve(model, one, max_steps=n_steps, exit_threshold=threshold)
        worst = max(worst, float((alone.scores - together.scores[row]).abs().max()))
        is_same &= bool((alone.answers[0] == together.answers[row]).all())
        is_same &= bool(alone.steps[0] == together.steps[row])
    size = max(1.0, float(together.scores.abs().max()))
    n_early = int((together.steps < n_steps).sum())
    measured = (
        f"alone or in a batch of {N_ROWS}, of which {n_early} left early: "
        f"{'equal' if is_same else 'other'} answers and exits, scores within {worst:.1e}"
    )
    figures = {"score_difference": worst, "same": is_same, "n_early": n_early}
    if is_same and worst <= TOLERANCE * size:
        return Finding("pass", measured, "A puzzle's answer depends on that puzzle alone.", figures)
    meaning = "A puzzle's answer depends on the puzzles that happen to be beside it."
    return Finding("fail", measured, meaning, figures)


def check_memory(context: RefinerContext) -> Finding:
    """Puzzles after other puzzles, solved and trained on, against the same as the first call."""
    model = context.probe()
    a, b = questions(model, 0), questions(model, 100)
    n_steps = min(model.cfg.halting.halt_max_steps, 2)
    fresh, used = copy.deepcopy(model), model
    solve(used, a, max_steps=n_steps)
    objective = context.objective(used)
    objective.accumulate(0)
    used.zero_grad()
    with torch.no_grad():
        worst = 0.0
        x, y = Refining(fresh, b), Refining(used, b)
        for _ in range(n_steps):
            first, second = x.advance(), y.advance()
            worst = max(worst, relative(first.logits, second.logits))
    measured = f"earlier puzzles move the next ones' logits by {worst:.1e} of their size"
    figures = {"difference": worst}
    if worst <= TOLERANCE:
        return Finding("pass", measured, "States belong to examples, never to the model.", figures)
    meaning = "Something of earlier puzzles is still there in the next: every call begins anew."
    return Finding("fail", measured, meaning, figures)


def check_carry(context: RefinerContext) -> Finding:
    """Rows forced to halt must begin anew; all others must keep example and state."""
    objective = context.objective(context.probe())
    before = objective.fresh(0)
    halted = torch.arange(N_ROWS) % 2 == 0
    marked = before._replace(z_H=before.z_H + 1, steps=before.steps + 1, halted=halted)
    objective.carry = marked
    examples = objective._ahead.take(N_ROWS)
    after, new = objective._admit(examples), objective.fresh(N_ROWS)
    kept = all(torch.equal(a[~halted], b[~halted]) for a, b in zip(after, marked, strict=True))
    replaced = all(torch.equal(a[halted], b[halted]) for a, b in zip(after, new, strict=True))
    good = kept and replaced
    return Finding(
        "pass" if good else "fail",
        f"rows that go on {'kept' if kept else 'changed'}, halted rows "
        f"{'begun anew' if replaced else 'not begun anew'}",
        "State, step count and example of a row belong together." if good
        else "A state meets an example that it does not belong to.",
        {"kept": kept, "replaced": replaced},
    )  # fmt: skip
