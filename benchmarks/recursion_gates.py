"""Gates of answer refinement on Sudoku: accuracy per CPU-second, the single pass, early exit.

    python benchmarks/recursion_gates.py 4x4 [SEED ...]
    python benchmarks/recursion_gates.py 6x6 [SEED ...]

Trains the recipe on one CPU core per seed, and on 4x4 also the same network without recursion
(one cycle of one update, one segment) for the same CPU time. CPU-seconds are those of this process,
evaluations during training included, making the puzzles and the final test left out.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from mixlab.jobs.process import tune_process

tune_process()

from mixlab.jobs.config import load_config
from mixlab.jobs.device import settle_hardware
from mixlab.jobs.kinds import kind_of
from mixlab.jobs.screen import PlainScreen
from mixlab.jobs.train import start_run
from mixlab.training.objective import update
from mixlab.training.schedule import lr_factor

GATES = {"4x4": (0.99, 180), "6x6": (0.95, 420)}
SINGLE_PASS = ["model.H_cycles=1", "model.L_cycles=0", "model.state_init=input",
               "model.halting.kind=fixed", "model.halting.halt_max_steps=1"]  # fmt: skip


class CpuClock(PlainScreen):
    """Notes the CPU time at the first and the last evaluation during training."""

    def __init__(self) -> None:
        super().__init__(lambda text: None)
        self.times: list[float] = []

    def evaluation(self, row: dict, context: dict) -> None:
        self.times.append(time.process_time())

    @property
    def seconds(self) -> float:
        return self.times[-1] - self.times[0]


def train(recipe: str, overrides: list[str]) -> tuple[dict, float]:
    """The summary and the CPU-seconds of one run."""
    clock = CpuClock()
    with tempfile.TemporaryDirectory() as folder:
        result = start_run(
            recipe, overrides, run_dir=Path(folder) / "run", screen=clock, command="gates"
        )
    return result.summary, clock.seconds


def cpu_seconds_per_update(recipe: str, overrides: list[str]) -> float:
    """Mean CPU time of 20 updates after 5."""
    config = load_config(recipe, [*overrides, "train.length=1000"])
    kind = kind_of(config)
    hardware = settle_hardware(config.train)
    session = kind.open_session(config, kind.prepare_data(config, PlainScreen()), hardware)
    for i in range(25):
        if i == 5:
            start = time.process_time()
        factor = lr_factor(config.train.schedule, None, i, 1000)
        update(session.objective, session.optimizer, i * config.train.batch_size,
               lr_factor=factor, max_grad_norm=1.0)  # fmt: skip
    return (time.process_time() - start) / 20


def main() -> None:
    size = sys.argv[1]
    seeds = [int(seed) for seed in sys.argv[2:]] or [1, 2, 3]
    recipe, (wanted, budget) = f"sudoku-{size}", GATES[size]
    exact, advantages = [], []
    for seed in seeds:
        own = [f"seed={seed}", "train.device=cpu", "train.threads=1"]
        summary, seconds = train(recipe, own)
        test, found = summary["test"], summary["refinement"]
        exact.append(test["exact_accuracy"])
        print(
            f"seed {seed}: {test['exact_accuracy']:.2%} exact of {test['n_examples']} test "
            f"puzzles in {seconds:.0f} CPU-s; AUROC {test['halt_auroc']:.4f}",
            flush=True,
        )
        eager = found.get("early_exit")
        if eager is not None:
            share = eager["reasoning_steps"] / found["trained_steps"]
            print(
                f"  early exit at {found['exit_threshold']}: {eager['exact_accuracy']:.2%} with "
                f"{eager['reasoning_steps']:.2f} segments, {share:.0%} of all",
                flush=True,
            )
        if size == "4x4":
            single = [*own, *SINGLE_PASS]
            n_steps = int(seconds / cpu_seconds_per_update(recipe, single))
            single += [f"train.length={n_steps}", f"eval.every={max(n_steps // 4, 1)}"]
            control, control_s = train(recipe, single)
            other = control["test"]["exact_accuracy"]
            advantages.append(exact[-1] - other)
            print(
                f"  single pass, {control['n_params']:,} against {summary['n_params']:,} "
                f"parameters: {other:.2%} in {control_s:.0f} CPU-s",
                flush=True,
            )
    spread = statistics.stdev(exact) if len(exact) > 1 else 0.0
    print(
        f"{size}: {statistics.mean(exact):.2%} +- {spread:.2%} over {len(exact)} seeds; "
        f"gate {wanted:.0%} in {budget} CPU-s"
    )
    if advantages:
        print(f"advantage over the single pass: {[f'{a:+.1%}' for a in advantages]}; gate +5 %")


if __name__ == "__main__":
    main()
