"""Gates of answer refinement on Sudoku: accuracy per CPU-second, the single pass, early exit.

    python benchmarks/recursion_gates.py 4x4 [SEED ...]
    python benchmarks/recursion_gates.py 6x6 [SEED ...]
    python benchmarks/recursion_gates.py 9x9 [SEED ...]

Trains the recipe with every seed: 9x9 on a GPU, the others on one CPU core. On 4x4 the same network
without recursion (one cycle of one update, one segment) gets the same CPU time. Seconds are those
of this process, on a GPU those of the clock; evaluations during training are included, making the
puzzles and the final test left out.
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

GATES = {"4x4": (0.99, 180), "6x6": (0.95, 420), "9x9": (0.95, 600)}
SINGLE_PASS = ["model.H_cycles=1", "model.L_cycles=0", "model.state_init=input",
               "model.halting.kind=fixed", "model.halting.halt_max_steps=1"]  # fmt: skip


class Clock(PlainScreen):
    """Notes the time and what is solved at each evaluation during training."""

    def __init__(self, *, on_gpu: bool) -> None:
        super().__init__(lambda text: None)
        self._now = time.monotonic if on_gpu else time.process_time
        self.times: list[float] = []
        self.solved: list[float] = []

    def evaluation(self, row: dict, context: dict) -> None:
        self.times.append(self._now())
        self.solved.append(row["exact_accuracy"])

    @property
    def curve(self) -> str:
        """What was solved after so many seconds."""
        points = zip(self.times, self.solved, strict=True)
        return ", ".join(f"{t - self.times[0]:.0f} s {solved:.1%}" for t, solved in points)

    @property
    def seconds(self) -> float:
        return self.times[-1] - self.times[0]


def train(recipe: str, overrides: list[str], *, on_gpu: bool = False) -> tuple[dict, Clock]:
    """The summary of one run, and the time that it took."""
    clock = Clock(on_gpu=on_gpu)
    with tempfile.TemporaryDirectory() as folder:
        result = start_run(
            recipe, overrides, run_dir=Path(folder) / "run", screen=clock, command="gates"
        )
    return result.summary, clock


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
    size = sys.argv[1] if len(sys.argv) > 1 else ""
    if size not in GATES:
        raise SystemExit(__doc__)
    on_gpu = size == "9x9"
    unit = "s" if on_gpu else "CPU-s"
    seeds = [int(seed) for seed in sys.argv[2:]] or [1, 2, 3]
    recipe, (wanted, budget) = f"sudoku-{size}", GATES[size]
    exact, advantages = [], []
    for seed in seeds:
        own = [f"seed={seed}", "train.device=" + ("cuda" if on_gpu else "cpu"), "train.threads=1"]
        summary, clock = train(recipe, own, on_gpu=on_gpu)
        seconds = clock.seconds
        test, found = summary["test"], summary["refinement"]
        exact.append(test["exact_accuracy"])
        print(
            f"seed {seed}: {test['exact_accuracy']:.2%} exact of {test['n_examples']} test "
            f"puzzles in {seconds:.0f} {unit}; AUROC {test['halt_auroc']:.4f}\n  {clock.curve}",
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
            control, other_clock = train(recipe, single)
            other = control["test"]["exact_accuracy"]
            advantages.append(exact[-1] - other)
            print(
                f"  single pass, {control['n_params']:,} against {summary['n_params']:,} "
                f"parameters: {other:.2%} in {other_clock.seconds:.0f} CPU-s",
                flush=True,
            )
    spread = statistics.stdev(exact) if len(exact) > 1 else 0.0
    print(
        f"{size}: {statistics.mean(exact):.2%} +- {spread:.2%} over {len(exact)} seeds; "
        f"gate {wanted:.0%} in {budget} {unit}"
    )
    if advantages:
        print(f"advantage over the single pass: {[f'{a:+.1%}' for a in advantages]}; gate +5 %")


if __name__ == "__main__":
    main()
