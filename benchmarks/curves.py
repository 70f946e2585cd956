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
from typing import Any, Protocol

from mixlab.jobs.process import tune_process

tune_process()

import torch
from curves_picture import curves_picture
from torch import Tensor, nn
from training_peers import classes
from training_workloads import WORKLOADS, peer_settings

from mixlab.core.json_files import write_bytes_atomically
from mixlab.data.loader import Loader
from mixlab.data.prepare import PreparedData
from mixlab.jobs.config import RunConfig, load_config
from mixlab.jobs.court.session import hold_court
from mixlab.jobs.device import Hardware, describe, settle_hardware
from mixlab.jobs.screen import PlainScreen
from mixlab.jobs.session import open_session, prepare_data, wanted_windows
from mixlab.jobs.smoke import load_shrunk
from mixlab.ops.cross_entropy import score_tokens
from mixlab.report.panel import png
from mixlab.training.objective import update
from mixlab.training.schedule import lr_factor

N_STEPS, EVERY = 300, 25
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


class Side(Protocol):
    """One of the two trainings."""

    label: str
    n_params: int
    context: dict[str, Any]  # what to read a loss beside

    def step(self, i: int) -> Tensor:
        """Make update `i` and return its loss, still on the device."""
        ...

    def evaluate(self) -> float:
        """Nats per token on the validation windows."""
        ...


class Ours:
    """The recipe, as `mixlab train` runs it."""

    def __init__(self, config: RunConfig, data: PreparedData, hardware: Hardware) -> None:
        self._train, self._n_steps = config.train, int(config.train.length.amount)
        self._session = open_session(config, data, hardware)
        self._session.model.train()
        self.label = f"mixlab {config.name}"
        self.n_params = sum(p.numel() for p in self._session.model.parameters())
        self.context = self._session.context

    def step(self, i: int) -> Tensor:
        metrics = update(
            self._session.objective,
            self._session.optimizer,
            i * self._train.batch_size,
            lr_factor=lr_factor(self._train.schedule, None, i, self._n_steps),
            max_grad_norm=self._train.max_grad_norm,
        )
        return metrics.loss_nats

    def evaluate(self) -> float:
        return float(self._session.evaluate()["loss_nats"])


class Published:
    """FLA's hybrid in bfloat16 throughout, with its authors' optimizer and schedule."""

    def __init__(self, config: RunConfig, data: PreparedData, hardware: Hardware) -> None:
        self._config, self._device = config, hardware.device
        self._n_steps = int(config.train.length.amount)
        shape = next(w for w in WORKLOADS if w.key == "published").shape
        settings = peer_settings("fla", shape) | {"intermediate_size": 4 * shape.width}
        family, dtype = "fla", torch.bfloat16
        if hardware.device.type == "cpu":
            family, dtype = "llama", torch.float32
            settings = peer_settings("llama", shape.tiny()) | {
                "vocab_size": data.tokenizer.vocab_size
            }
        torch.manual_seed(config.seed)
        make_config, make_model = classes(family)
        with hardware.device:
            model = make_model(make_config(**settings))
        self._model = model.to(dtype).train()
        self._parameters = list(model.parameters())
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=2e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True
        )
        seq_len = config.data.seq_len
        self._loader = Loader(data.split("train"), seq_len, config.seed)
        self._held_out = Loader(data.split("validation"), seq_len, config.seed)
        self._n_windows = min(wanted_windows(config), self._held_out.n_windows)
        self.label = "published recipe, FLA"
        if self._n_steps < N_STEPS:
            self.label += f", {self._n_steps} updates"
        self.n_params = sum(p.numel() for p in self._parameters)
        self.context: dict[str, Any] = {}

    def _factor(self, i: int) -> float:
        warm_up = self._config.train.schedule.warmup_steps
        if i < warm_up:
            return i / warm_up
        return max(0.1, (self._n_steps - i) / (self._n_steps - warm_up))

    def step(self, i: int) -> Tensor:
        size = self._config.train.batch_size
        tokens = self._loader.batch(i * size, size).tokens.to(self._device, non_blocking=True)
        loss = self._model(input_ids=tokens, labels=tokens, use_cache=False).loss  # it shifts them
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = 2e-3 * self._factor(i)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    @torch.no_grad()
    def evaluate(self) -> float:
        self._model.eval()
        batches = self._held_out.window_batches(self._n_windows, self._config.eval.batch_size)
        total, n_targets = 0.0, 0
        for batch in batches:
            batch = batch.to(self._device)
            h = self._model.model(input_ids=batch.tokens, use_cache=False)[0]
            targets = batch.targets.flatten()
            scores = score_tokens(h.flatten(0, 1), self._model.lm_head.weight, targets)
            total += float(scores.nats.double().sum())
            n_targets += targets.numel()
        self._model.train()
        return total / n_targets


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
        record.losses.append(side.step(i))
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
