"""Learning: where gradients go, what the halting head learns from, and what an update does."""

import torch
from torch import Tensor

from mixlab.checks.base import CheckContext, Finding
from mixlab.checks.master_weights import check_master_weights
from mixlab.checks.refinement.base import N_ROWS, TOLERANCE, RefinerContext, questions
from mixlab.infer.refinement import solve
from mixlab.nn.recursion.halting import act_weights, ponder_divergence, ponder_weights
from mixlab.nn.recursion.refiner import Refiner
from mixlab.training.refinement import Refinement

MAX_STEPS = 4
"""Segments that halting is tried with, where a config has more."""
CERTAIN = 30.0
"""A halting logit that leaves no doubt."""


def check_gradients(context: RefinerContext) -> Finding:
    """After one update's backward pass, which parameters have no gradient at all."""
    model = context.probe()
    context.objective(model, batch_size=2 * N_ROWS).accumulate(0)
    optional = ("router", "gate.", "experts")  # an expert that no token chose has none
    parameters = [
        (name, p)
        for name, p in model.named_parameters()
        if p.numel() and not any(part in name for part in optional)
    ]
    missing = [n for n, p in parameters if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    n = len(parameters)
    measured = f"{n - len(missing)} of {n} parameter tensors have a gradient"
    figures = {"missing": missing, "n": n}
    if not missing:
        return Finding("pass", measured, "Every part of the model is trained.", figures)
    meaning = f"Nothing trains {', '.join(missing[:3])}: it stays at its first value."
    return Finding("fail", measured, meaning, figures)


def check_halting(context: RefinerContext) -> Finding:
    """The gradient of the halting loss at its head; and heads made certain, yes and no."""
    model = context.probe()
    halting = model.cfg.halting
    longest = max(halting.halt_min_steps, min(halting.halt_max_steps, MAX_STEPS))
    halting = halting.model_copy(update={"halt_max_steps": longest})
    model.cfg = model.cfg.model_copy(update={"halting": halting})
    objective = context.objective(model)
    if model.q_head is None:
        steps = _steps_in_training(objective)
        good = steps == [longest]
        return Finding(
            "pass" if good else "fail",
            f"every puzzle stays {' or '.join(map(str, steps))} segments",
            "There is no halting head; all puzzles stay equally long.",
            {"steps": steps, "expected": longest},
        )
    size = _head_gradient(objective, model)
    found: dict[str, list[int]] = {}
    for word, logit in (("yes", CERTAIN), ("no", -CERTAIN)):
        with torch.no_grad():
            model.q_head.weight.zero_()
            model.q_head.bias.fill_(-logit)  # of going on, where there are two
            model.q_head.bias[0] = logit
        solved = solve(model, questions(model, 0), exit_threshold=0.0)
        found[f"solving, {word}"] = sorted(set(solved.steps.tolist()))
        if not halting.unrolls:
            found[f"training, {word}"] = _steps_in_training(objective)
    expected = {"yes": [halting.halt_min_steps], "no": [longest]}
    obeys = all(steps == expected[name.split()[-1]] for name, steps in found.items())
    measured = (
        f"halting {halting.kind}: its loss has a gradient of size {size:.1e} at the head; segments "
        + ", ".join(f"{' to '.join(map(str, steps))} ({name})" for name, steps in found.items())
    )
    figures = {"gradient": size, "steps": found, "halt_max_steps": longest}
    if size > 0 and obeys:
        meaning = "Halting is trained, and puzzles stay as long as their head says."
        return Finding("pass", measured, meaning, figures)
    meaning = (
        "The halting head cannot learn: what it is charged for does not depend on it."
        if not size > 0
        else "Puzzles do not stay as long as their halting head says."
    )
    return Finding("fail", measured, meaning, figures)


def _head_gradient(objective: Refinement, model: Refiner) -> float:
    """Norm of the gradient at the head of what halting alone is charged for."""
    halting = model.cfg.halting
    carry = objective.fresh(0)
    logits, charged = [], torch.zeros(())
    for _ in range(halting.halt_max_steps if halting.unrolls else 1):
        result = objective._segment_loss(carry)
        carry, _ = objective._next(carry, result)
        logits.append(result.segment.halt_logits)
        charged = sum((loss.mean() for loss in result.heads.values()), torch.zeros(()))
    if halting.kind == "act":
        charged = act_weights(torch.cat(logits, dim=1))[1].mean()
    elif halting.kind == "ponder":
        weights = ponder_weights(torch.cat(logits, dim=1))
        charged = ponder_divergence(weights, halting.ponder_prior).mean()
    if not charged.requires_grad:
        return 0.0
    (gradient,) = torch.autograd.grad(charged, [model.q_head.weight], allow_unused=True)
    return 0.0 if gradient is None else float(gradient.norm())


@torch.no_grad()
def _steps_in_training(objective: Refinement) -> list[int]:
    """After how many segments examples leave the carry, exploration aside."""
    halting = objective.model.cfg.halting
    carry = objective.fresh(0)
    carry = carry._replace(least=torch.zeros_like(carry.least))
    left: set[int] = set()
    for _ in range(halting.halt_max_steps):
        carry, _ = objective._next(carry, objective._segment_loss(carry))
        left |= set(carry.steps[carry.halted].tolist())
        if bool(carry.halted.all()):
            break
    return sorted(left)


def check_loss_mean(context: RefinerContext) -> Finding:
    """The gradient of a batch against the mean of those of its puzzles by themselves."""
    model = context.probe()
    whole = _gradient(context, model, 0, N_ROWS)
    alone = [_gradient(context, model, i, 1) for i in range(N_ROWS)]
    mean = torch.stack(alone).mean(dim=0)
    worst = float((whole - mean).norm() / whole.norm())
    measured = (
        f"the gradient of {N_ROWS} puzzles and the mean of theirs one by one differ by "
        f"{worst:.1e} of its size"
    )
    figures = {"difference": worst}
    if worst <= TOLERANCE:
        meaning = "Every puzzle counts alike, however many labels it has."
        return Finding("pass", measured, meaning, figures)
    meaning = "What a puzzle counts depends on the puzzles beside it."
    return Finding("fail", measured, meaning, figures)


def _gradient(context: RefinerContext, model: Refiner, position: int, n: int) -> Tensor:
    """Of the answers' and heads' loss, without balance losses, which are about a whole batch."""
    model.zero_grad(set_to_none=True)
    objective = context.objective(model, batch_size=n)
    objective._segment_loss(objective.fresh(position)).loss.mean().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def check_updates(context: RefinerContext) -> Finding:
    """One update at the peak learning rate, against the same update in float64."""
    weights = CheckContext(build=context.build, seq_len=0, optimizer=context.optimizer)
    return check_master_weights(weights)
