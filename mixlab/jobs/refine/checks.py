"""Checks of a refiner: rows are independent, examples stay whole, every head learns."""

import time

import numpy as np
import torch

from mixlab.checks import CHECKS, CheckResult, Finding
from mixlab.checks.base import ROUNDING
from mixlab.core.run_dir import RunDir
from mixlab.core.units import count, duration
from mixlab.infer.refinement import solve
from mixlab.jobs.check import CheckFailedError, CheckReport
from mixlab.jobs.config import RefineRunConfig
from mixlab.jobs.refine.session import RefineSession
from mixlab.jobs.screen import Screen
from mixlab.nn.recursion.refiner import Refiner, RefinerConfig, build_refiner
from mixlab.tasks.examples import Puzzles
from mixlab.training.refinement import Refinement

N_ROWS = 4
_QUESTIONS = {
    "batch-rows": "Is a puzzle independent of its batch mates, also when one exits early?",
    "carry": "Does an example stay in the batch until it halts, with its own state?",
    "gradients": "Does training reach every parameter, the halting head included?",
}
_NOT_APPLICABLE = (
    "The check is about next-token prediction; a refiner answers all positions at once."
)


def check_refiner(config: RefineRunConfig) -> CheckReport:
    """Every check, on first weights in float64; those of language models are named and left out."""
    start = time.perf_counter()
    findings = refiner_findings(config.model, config.seed)
    results = [CheckResult(name, _QUESTIONS[name], found) for name, found in findings.items()]
    results += [
        CheckResult(name, check.question, Finding("not applicable", "nothing", _NOT_APPLICABLE, {}))
        for name, check in CHECKS.items()
        if name not in findings
    ]
    n_params = sum(p.numel() for p in build_refiner(config.model, config.seed).parameters())
    size = f"checked at full size, {count(n_params)} parameters"
    return CheckReport(config.name, size, results, time.perf_counter() - start, [])


def check_refiner_before_training(run: RunDir, session: RefineSession, screen: Screen) -> None:
    """The same before a run, recorded in checks.json; once per run folder.

    Raises:
        CheckFailedError: names the check and what it measured.
    """
    config = session.config
    before = run.read_json("checks.json")
    if config.checks == "off" or (before is not None and before["passed"]):
        return
    report = check_refiner(config)
    run.write_json("checks.json", report.tree())
    if report.failed:
        first = report.failed[0]
        raise CheckFailedError(
            f"check {first.name} failed, so nothing was trained: {first.finding.measured}. "
            f"{first.finding.meaning} To train all the same, set checks=off."
        )
    n_done = sum(result.verdict == "pass" for result in report.results)
    screen.note(f"{n_done} checks passed in {duration(report.seconds)} ({report.size}).")


def refiner_findings(cfg: RefinerConfig, seed: int) -> dict[str, Finding]:
    """The findings by name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_refiner(cfg, seed).double().eval()
        if model.q_head is not None:  # first weights are zero, and all scores would be alike
            torch.nn.init.normal_(model.q_head.weight, std=cfg.d_model**-0.5)
        # Untrained recursion amplifies rounding from call to call, so few calls are compared.
        cycles = {"H_cycles": 1, "L_cycles": min(cfg.L_cycles, 2), "grad_cycles": 1}
        model.cfg = cfg.model_copy(update=cycles)
        rows = _batch_rows(model)
        model.cfg = cfg
        return {
            "batch-rows": rows,
            "carry": _carry(model),
            "gradients": _gradients(model),
        }


class RandomPuzzles:
    """Random tokens, other ones at every position: enough to see whether rows are mixed up."""

    def __init__(self, cfg: RefinerConfig) -> None:
        self.cfg = cfg

    def batch(self, position: int, n: int) -> Puzzles:
        rows = [np.random.default_rng(position + i) for i in range(n)]
        low = min(1, self.cfg.vocab_size - 1)
        shape = (2, self.cfg.length)
        tokens = np.stack([rng.integers(low, self.cfg.vocab_size, shape) for rng in rows])
        inputs, labels = tokens.astype(np.uint8).transpose(1, 0, 2)
        return Puzzles(inputs.copy(), labels.copy(), inputs == labels)


def _batch_rows(model: Refiner) -> Finding:
    inputs = torch.from_numpy(RandomPuzzles(model.cfg).batch(0, N_ROWS).inputs).long()
    n_steps = min(model.cfg.halting.halt_max_steps, 2)
    together = solve(model, inputs, max_steps=n_steps)
    threshold = float(together.scores.median())  # so that some exit and some go on
    eager = solve(model, inputs, max_steps=n_steps, exit_threshold=threshold)
    worst, same = 0.0, True
    for row in range(N_ROWS):
        alone = solve(model, inputs[row : row + 1], max_steps=n_steps, exit_threshold=threshold)
        worst = max(worst, float((alone.scores - eager.scores[row]).abs()))
        same &= bool((alone.answers[0] == eager.answers[row]).all())
        same &= bool(alone.steps[0] == eager.steps[row])
    good = same and worst <= ROUNDING * max(1.0, float(eager.scores.abs().max())) * 2**12
    return Finding(
        "pass" if good else "fail",
        f"alone or in a batch of {N_ROWS}: {'equal' if same else 'other'} answers and exits, "
        f"scores within {worst:.1e}",
        "A puzzle's answer does not depend on its batch mates." if good
        else "A puzzle's answer depends on the puzzles beside it.",
        {"score_difference": worst, "same": same},
    )  # fmt: skip


def _carry(model: Refiner) -> Finding:
    """Rows forced to halt must begin anew; all others must keep example and state."""
    objective = Refinement(model, RandomPuzzles(model.cfg), batch_size=N_ROWS, seed=0)
    before = objective.fresh(0)
    halted = torch.arange(N_ROWS) % 2 == 0
    marked = before._replace(z_H=before.z_H + 1, steps=before.steps + 1, halted=halted)
    objective.carry = marked
    after, new = objective._admit(N_ROWS), objective.fresh(N_ROWS)
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


def _gradients(model: Refiner) -> Finding:
    """After one update's backward pass, which parameters have no gradient at all."""
    objective = Refinement(model, RandomPuzzles(model.cfg), batch_size=N_ROWS, seed=0)
    model.zero_grad()
    objective.accumulate(0)
    optional = ("router", "experts")  # an expert that no token chose has none
    missing = [
        name
        for name, p in model.named_parameters()
        if p.numel()
        and (p.grad is None or not bool(p.grad.abs().sum() > 0))
        and not any(part in name for part in optional)
        and not (name == "embed_places" and model.cfg.positions == "none")
    ]
    model.zero_grad()
    n = sum(1 for _ in model.parameters())
    return Finding(
        "fail" if missing else "pass",
        f"{n - len(missing)} of {n} parameters have a gradient"
        + (f", not {', '.join(missing[:3])}" if missing else ""),
        "Training reaches every parameter." if not missing
        else "What has no gradient stays at its first value.",
        {"missing": missing},
    )  # fmt: skip
