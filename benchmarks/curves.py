"""300 updates of `hybrid-sparse-17` beside the published recipe, trained as its authors train it.

    python benchmarks/curves.py prepare                      # the text, once; needs no GPU
    python benchmarks/curves.py train ours --json ours.json
    python benchmarks/curves.py train published --json published.json   # on another GPU, meanwhile
    python benchmarks/curves.py train published --steps 100 --json short.json
    python benchmarks/curves.py draw ours.json published.json short.json --picture P.png

Both read the sources of the packages installed here, cut by the same tokenizer of 49,152 entries
into the same 48 x 1,024 tokens per update in the same order, and are measured on the same
validation windows: head and softmax in float32.

`ours` is the packaged recipe with 300 steps and the published warm-up of 30. `published` is FLA's
GatedDeltaNet with attention at layers 5 and 11, 12 heads of 256 (FLA's default, which its authors
left), SwiGLU of 3,072: 283.7M parameters, all in bfloat16, FLA's initialisation; AdamW at 2e-3,
betas 0.9 and 0.95, decay 0.1 on every parameter, gradients clipped to 1.0, a linear warm-up of 30
updates from 0 and a linear decay to a tenth. Documents follow each other in its windows and see
each other, as in the original; ours are masked from each other.

`--steps` gives a run another length and fits the schedule to it: so the published recipe can be
seen where it has only the time that ours took, and knows it.

Seconds are those of training, evaluations left out. An update that compiles or tunes kernels counts
like the median one in `seconds`; `seconds_with_compile` has it as it was. `--tiny` runs a small
size on whatever is here (with a Llama in the place of FLA's model, whose kernels need a GPU).
"""

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from mixlab.jobs.process import tune_process

tune_process()

import torch
from curves_picture import curves_picture
from curves_sides import N_STEPS, Ours, Published, Side
from torch import Tensor

from mixlab.core.json_files import write_bytes_atomically
from mixlab.jobs.config import RunConfig, load_config
from mixlab.jobs.court.session import hold_court
from mixlab.jobs.device import describe, settle_hardware
from mixlab.jobs.screen import PlainScreen
from mixlab.jobs.session import prepare_data
from mixlab.jobs.smoke import load_shrunk
from mixlab.report.panel import png

EVERY = 25
SLOW = 5.0
"""An update that takes so many times the median is taken for one that compiles or tunes."""


def config_of(n_steps: int = N_STEPS, *, tiny: bool = False) -> RunConfig:
    """The recipe with the length and the warm-up (a tenth of it) of the published run."""
    changes = [f"train.schedule.warmup_steps={n_steps // 10}", f"eval.every={EVERY}"]
    if tiny:
        config = load_shrunk("hybrid-sparse-17", [*changes, "data.corpus={kind: python-stdlib}"])
    else:
        config = load_config("hybrid-sparse-17", [*changes, f"train.length={n_steps} steps"])
    assert isinstance(config, RunConfig)
    return config


class Clock:
    """Seconds of single updates, without waiting for the device in between."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._stretches: list[list[Any]] = []

    def _now(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def start(self) -> None:
        """Begin a stretch of updates; what came before it does not count."""
        if self._is_cuda:
            torch.cuda.synchronize()
        self._stretches.append([self._now()])

    def mark(self) -> None:
        """An update has been made."""
        self._stretches[-1].append(self._now())

    def seconds(self) -> list[float]:
        """Of every update."""
        if self._is_cuda:
            torch.cuda.synchronize()
        pairs = itertools.chain.from_iterable(map(itertools.pairwise, self._stretches))
        return [a.elapsed_time(b) / 1000 if self._is_cuda else b - a for a, b in pairs]


class Record:
    """What has been measured of a training so far, as plain data for the file."""

    def __init__(self, side: Side, config: RunConfig, device: torch.device) -> None:
        self._side, self._device, self.clock = side, device, Clock(device)
        self.losses: list[Tensor] = []
        self.evals: list[dict[str, Any]] = []
        self._facts = {
            "label": side.label,
            "n_params": side.n_params,
            "n_steps": int(config.train.length.amount),
            "made": date.today().isoformat(),
            "device": describe(device),
            "torch": torch.__version__,
            "tokens_per_step": config.tokens_per_step,
            "context": side.context,
        }

    def evaluate(self) -> None:
        """Measure the model as it is now."""
        step = len(self.losses)
        self.evals.append({"step": step, "loss_nats": self._side.evaluate()})
        recent = torch.stack(self.losses[-EVERY:]).mean() if step else math.nan
        print(f"  {self._side.label}: {step} updates, train {float(recent):.3f}, validation "
              f"{self.evals[-1]['loss_nats']:.3f}", file=sys.stderr, flush=True)  # fmt: skip

    def document(self) -> dict[str, Any]:
        """Everything; waits for the device."""
        seconds = self.clock.seconds()
        typical = statistics.median(seconds)
        plain = [s if s < SLOW * typical else typical for s in seconds]
        is_cuda = self._device.type == "cuda"
        return self._facts | {
            "median_ms": 1000 * typical,
            "train_loss": torch.stack(self.losses).float().tolist(),
            "seconds": list(itertools.accumulate(plain)),
            "seconds_with_compile": list(itertools.accumulate(seconds)),
            "evals": self.evals,
            "peak_bytes": torch.cuda.max_memory_allocated() if is_cuda else None,
        }


def train(side: Side, config: RunConfig, device: torch.device) -> Iterator[Record]:
    """Make all updates; the record is handed over after every evaluation but the first."""
    record, n_steps = Record(side, config, device), int(config.train.length.amount)
    record.evaluate()
    record.clock.start()
    for i in range(n_steps):
        record.losses.append(side.step(i).clone())  # a replayed update overwrites it
        record.clock.mark()
        if (i + 1) % config.eval.every == 0 or i + 1 == n_steps:
            record.clock.seconds()  # waits
            record.evaluate()
            yield record
            record.clock.start()


def run(name: str, n_steps: int, *, tiny: bool) -> Iterator[dict[str, Any]]:
    """One side from the prepared text to its curve, as far as it is after every evaluation."""
    config = config_of(n_steps, tiny=tiny)
    data = prepare_data(config, PlainScreen())
    hardware = settle_hardware(config.train)
    if name == "ours":
        hardware = hardware._replace(kernels=hold_court(config, hardware, PlainScreen()))
    side = {"ours": Ours, "published": Published}[name](config, data, hardware)
    for record in train(side, config, hardware.device):
        yield {"side": name, **record.document()}


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.verb == "draw":
        runs = [json.loads(path.read_text()) for path in args.files]
        write_bytes_atomically(args.picture, png(curves_picture(runs)))
        return 0
    if args.verb == "prepare":
        prepare_data(config_of(tiny=args.tiny), PlainScreen())
        return 0
    if not (torch.cuda.is_available() or args.tiny):
        print(
            "curves.py needs an NVIDIA GPU to train, and PyTorch finds none here. Try the same "
            "code in a small size on this machine with --tiny.",
            file=sys.stderr,
        )
        return 2
    for found in run(args.side, args.steps, tiny=args.tiny):
        if args.json is not None:
            args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    prepare = verbs.add_parser("prepare", help="read, split and tokenise the text")
    training = verbs.add_parser("train", help="train one of the two")
    training.add_argument("side", choices=["ours", "published"])
    training.add_argument(
        "--steps", type=int, default=N_STEPS, help="updates, with the schedule fitted to them"
    )
    training.add_argument("--json", type=Path, metavar="FILE", help="write the curve there")
    for verb in (prepare, training):
        verb.add_argument("--tiny", action="store_true", help="a small size, on a CPU if need be")
    draw = verbs.add_parser("draw", help="draw curves into one picture")
    draw.add_argument("files", type=Path, nargs="+", metavar="JSON")
    draw.add_argument("--picture", type=Path, required=True, metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
