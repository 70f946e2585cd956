"""One contender of `gpu_training.py`, in a process of its own: started, told what to do, heard.

    python benchmarks/training_worker.py WORKLOAD CONTENDER [--tiny]

It reads commands from standard input (`start`, `round N`, `finish`, one per line) and answers each
with one line of JSON. What a package prints goes to standard error. An exception is an answer, too.
"""

import argparse
import contextlib
import importlib
import importlib.util
import itertools
import json
import os
import sys
import time
import traceback
import types
from importlib.machinery import ModuleSpec
from typing import Any, Protocol

from training_workloads import WORKLOADS, Contender, Workload, peer_settings

from mixlab.jobs.process import tune_process

tune_process()

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from mixlab.data.synthetic import RandomText  # noqa: E402
from mixlab.jobs import bench  # noqa: E402
from mixlab.jobs.config import RunConfig, load_config  # noqa: E402
from mixlab.jobs.kernel_times import kernel_times  # noqa: E402
from mixlab.jobs.kinds import kind_of  # noqa: E402
from mixlab.jobs.screen import PlainScreen  # noqa: E402
from mixlab.nn.budget import model_budget  # noqa: E402

N_FRESH = 2
"""Updates before those of a round that are timed: memory was handed back after the last round."""

CLASSES = {
    "fla": ("fla.models", "GatedDeltaNetConfig", "GatedDeltaNetForCausalLM"),
    "llama": ("transformers", "LlamaConfig", "LlamaForCausalLM"),
    "qwen3_moe": ("transformers", "Qwen3MoeConfig", "Qwen3MoeForCausalLM"),
    "deepseek_v3": ("transformers", "DeepseekV3Config", "DeepseekV3ForCausalLM"),
}


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
            "n_graph_breaks", "n_recompiles",
        )  # fmt: skip
        n_params = model_budget(self._config.model, self._config.data.seq_len).n_params
        return {name: found[name] for name in kept} | {"n_params": n_params}


class Peer:
    """Another package's model with fused AdamW, clipping and no host synchronisation.

    Its batches lie on the device beforehand; ours are drawn and transferred while it is timed.
    """

    def __init__(self, contender: Contender, workload: Workload, device: torch.device) -> None:
        self._contender, self._device = contender, device
        shape = workload.shape
        make_config, make_model = classes(contender.family)
        config = make_config(**peer_settings(contender.family, shape))
        with device:
            model = make_model(config)
        model = model.to(device=device, dtype=getattr(torch, contender.weights)).train()
        self._model = model
        self._run = torch.compile(model) if contender.compile else model
        self._parameters = list(model.parameters())
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )
        text = RandomText(shape.vocab, shape.length, seed=1)
        self._batches = [text.batch(i * shape.rows, shape.rows).tokens.to(device) for i in range(4)]
        self._n = 0

    def _once(self) -> None:
        tokens = self._batches[self._n % len(self._batches)]
        self._n += 1
        is_mixed = self._contender.weights == "float32" and self._device.type == "cuda"
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=is_mixed):
            # It shifts the labels itself, which costs it one target of every sequence.
            loss = self._run(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def warm_up(self) -> float:
        start = time.perf_counter()
        self._once()
        _wait(self._device)
        first_s = time.perf_counter() - start
        for _ in range(bench.WARM_UP):
            self._once()
        _wait(self._device)
        return first_s

    def free(self, n_updates: int) -> list[float]:
        if self._device.type != "cuda":
            times = []
            for _ in range(n_updates):
                start = time.perf_counter()
                self._once()
                times.append(time.perf_counter() - start)
            return times
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(n_updates + 1)]
        marks[0].record()
        for mark in marks[1:]:
            self._once()
            mark.record()
        _wait(self._device)
        return [a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(marks)]

    def facts(self) -> dict[str, Any]:
        kernels = kernel_times(self._once, self._device)
        return {
            "precision": "bf16" if self._contender.weights == "bfloat16" else "fp32 + autocast",
            "compile": self._contender.compile,
            "kernels": [kernel._asdict() for kernel in kernels],
            "n_params": sum(p.numel() for p in self._parameters),
        }


def classes(family: str) -> tuple[Any, Any]:
    """A peer's config class and model class.

    Raises:
        ImportError: the package is not installed.
    """
    module, config_class, model_class = CLASSES[family]
    if family == "fla":
        _lend_flash_attention()
    package = importlib.import_module(module)
    return getattr(package, config_class), getattr(package, model_class)


def _lend_flash_attention() -> None:
    """Let FLA's attention layers run without the package flash_attn, by PyTorch's own kernel."""
    if importlib.util.find_spec("flash_attn") is not None:
        return

    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window_size: Any) -> Any:
        # All (B, T, heads, head_dim); the window is at least as long as the sequence.
        del window_size
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(*heads_first, is_causal=causal).transpose(1, 2)

    def refused(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("packed sequences need the package flash_attn")

    module = types.ModuleType("flash_attn")
    module.__spec__ = ModuleSpec("flash_attn", None)
    module.flash_attn_func, module.flash_attn_varlen_func = flash_attn_func, refused
    sys.modules["flash_attn"] = module


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
            torch.cuda.reset_peak_memory_stats()
        return {"build_s": built_s, "first_update_s": first_s, "more_s": more_s}

    def round(self, n_updates: int) -> dict[str, Any]:
        """Time some updates, then leave the device to the others."""
        self._training.free(N_FRESH)
        times = self._training.free(n_updates)
        answer: dict[str, Any] = {"ms": [1000 * s for s in times]}
        if self._device.type == "cuda":
            answer["peak_bytes"] = torch.cuda.max_memory_allocated()
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
