"""One contender of `gpu_training.py`, in a process of its own: started, told what to do, heard.

    python benchmarks/training_worker.py WORKLOAD CONTENDER [--tiny]

It reads commands from standard input (`start`, `round N`, `finish`, one per line) and answers each
with one line of JSON. What a package prints goes to standard error. An exception is an answer, too.
"""

import argparse
import contextlib
import json
import os
import sys
import time
import traceback
from typing import Any, Protocol

from training_workloads import WORKLOADS, Contender, Workload

from mixlab.jobs.process import tune_process

tune_process()

import torch
from training_peers import Peer, classes

from mixlab.jobs import bench
from mixlab.jobs.config import RunConfig, load_config
from mixlab.jobs.kinds import kind_of
from mixlab.jobs.screen import PlainScreen
from mixlab.nn.budget import model_budget

N_FRESH = 2
"""Updates before those of a round that are timed: memory was handed back after the last round."""


class Training(Protocol):
    """What is timed, whoever wrote it."""

    def warm_up(self) -> float:
        """Seconds of the first update; some follow it."""
        ...

    def free(self, n_updates: int) -> list[float]:
        """Seconds of each of `n_updates` updates that follow each other as in training."""
        ...

    def facts(self) -> dict[str, Any]:
        """What else is known in the end."""
        ...


class Ours:
    """A recipe, timed by what `mixlab bench` is made of."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._timing = bench.Timing(config, PlainScreen())
        self._times: list[float] = []

    def warm_up(self) -> float:
        return self._timing.warm_up()

    def free(self, n_updates: int) -> list[float]:
        times = self._timing.free(n_updates)
        self._times += times
        return times

    def facts(self) -> dict[str, Any]:
        found = self._timing.result(self._times).row()
        kept = (
            "precision", "compile", "phases", "backends", "kernels", "n_graphs",
            "n_graph_breaks", "n_recompiles", "launching",
        )  # fmt: skip
        n_params = model_budget(self._config.model, self._config.data.seq_len).n_params
        return {name: found[name] for name in kept} | {"n_params": n_params}


def load_ours(workload: Workload, contender: Contender, *more: str) -> RunConfig:
    """The recipe changed to the workload's shape."""
    changes = [*workload.ours(workload.shape), *contender.overrides, *more]
    config = load_config(workload.recipe, changes)
    assert isinstance(config, RunConfig)
    return config


class Worker:
    """Answers the commands."""

    def __init__(self, workload: Workload, contender: Contender) -> None:
        self._workload, self._contender = workload, contender
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._training: Training

    def start(self) -> dict[str, Any]:
        """Build, compile, warm up."""
        began = time.perf_counter()
        if self._contender.family == "mixlab":
            self._training = Ours(load_ours(self._workload, self._contender))
        else:
            self._training = Peer(self._contender, self._workload, self._device)
        built_s = time.perf_counter() - began
        first_s = self._training.warm_up()
        more_s = time.perf_counter() - began - built_s - first_s
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # of what tuning and compiling took
        return {"build_s": built_s, "first_update_s": first_s, "more_s": more_s}

    def round(self, n_updates: int) -> dict[str, Any]:
        """Time some updates, then leave the device to the others."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._training.free(N_FRESH)
        times = self._training.free(n_updates)
        answer: dict[str, Any] = {"ms": [1000 * s for s in times]}
        if self._device.type == "cuda":
            # Taken from the device, not only in use: recorded graphs keep theirs to themselves.
            answer["peak_bytes"] = torch.cuda.max_memory_reserved()
            torch.cuda.empty_cache()
        return answer

    def finish(self) -> dict[str, Any]:
        """What ran, and what an update of this shape amounts to by mixlab's count."""
        is_ours = self._contender.family == "mixlab"
        more = () if is_ours else self._workload.peer_overrides
        config = load_ours(self._workload, self._contender, *more)
        flops = kind_of(config).flops_per_token(config)
        return self._training.facts() | {"flops_per_token": flops}


def answer_commands(worker: Worker, out: Any) -> None:
    """Until standard input ends or something fails."""
    for line in sys.stdin:
        verb, *numbers = line.split()
        try:
            answer = getattr(worker, verb)(*map(int, numbers))
        except Exception as error:  # the parent puts it into the table
            answer = {"error": f"{type(error).__name__}: {error}".strip()}
            traceback.print_exc()
        print(json.dumps(answer), file=out, flush=True)
        if "error" in answer:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workload", choices=[w.key for w in WORKLOADS])
    parser.add_argument("contender")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    workload = next(w for w in WORKLOADS if w.key == args.workload)
    if args.tiny:
        workload = workload.tiny()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints from now on does not disturb the answers
    if args.tiny:
        torch.set_num_threads(1)
    contender = workload.contender(args.contender)
    with contextlib.suppress(Exception):  # begun while others run; `start` says what is wrong
        classes(contender.family)
    answer_commands(Worker(workload, contender), out)


if __name__ == "__main__":
    main()
