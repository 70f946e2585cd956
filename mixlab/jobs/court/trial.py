"""One trial: backends of an op held to its definition, then timed on the shape of the run.

Agreement is judged on a slice of the run: outputs and every gradient against the definition in
float64 on the same inputs, with memory that was never written full of NaN, and a document of other
numbers next door, which must change nothing.
"""

import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mixlab.jobs.court.verdicts import Candidate, Dims, Verdict
from mixlab.ops.packing import Packing

SLICE_ROWS, SLICE_TOKENS = 2, 208
"""Of a slice: 3 chunks of 64 and a rest; a multiple of 16, for which Triton compiles as it does for
the usual lengths, so that most kernels are compiled once."""
ALLOWED = {torch.float32: 2e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Largest relative error: some roundings of the dtype; float32 may run on tf32 units."""
WARM_UP, ROUNDS, CALLS = 2, 3, 4
BUSY_PRODUCTS = 100
"""Of 4096 cubed in half precision, 0.2 ms each on an H200: more than launching the calls takes."""


@dataclass(frozen=True)
class Inputs:
    """What an op is called with."""

    leaves: Mapping[str, Tensor]  # those with a gradient
    packing: Packing | None = None
    given: Mapping[str, Tensor] | None = None  # those without

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        """The same with every leaf changed, as new leaves."""
        changed = {n: change(x.detach()).clone().requires_grad_() for n, x in self.leaves.items()}
        return replace(self, leaves=changed)


@dataclass(frozen=True)
class Case:
    """One use of an op in a run, and how to try it.

    Attributes:
        candidates: backends that can run, the one that `auto` means first; the last one is plain
            PyTorch, which is tried only if no other agrees.
        definition: the backend that all are held to.
        slow: candidates that compile for minutes before they run; tried only if no other agrees.
        make: inputs for so many rows and tokens, drawn from a generator on the device.
        run: outputs for these inputs by the named backend.
    """

    op: str
    dims: Dims
    dtype: torch.dtype
    n_rows: int
    n_tokens: int
    candidates: tuple[str, ...]
    definition: str
    make: Callable[[int, int, torch.Generator], Inputs]
    run: Callable[[Inputs, str], tuple[Tensor, ...]]
    slow: tuple[str, ...] = ()


def try_candidates(
    case: Case, device: torch.device, *, is_late: Callable[[], bool] = lambda: False
) -> Verdict:
    """Check and time; once one agrees, `is_late` ends the search."""
    found: list[Candidate] = []
    *kernels, plain = case.candidates
    for name in sorted(kernels, key=lambda name: name in case.slow):
        reason = ""
        if any(c.agrees for c in found):
            if name in case.slow:
                reason = "not tried: it compiles for minutes at first use"
            elif is_late():
                reason = "not tried: the time for trials is over"
        found.append(Candidate(name, False, note=reason) if reason else _tried(case, name, device))
    if any(c.agrees for c in found):
        found.append(Candidate(plain, False, note="not tried: a kernel agrees"))
    elif kernels:
        found.append(_tried(case, plain, device))
    agreeing = [c for c in found if c.agrees]
    best = min(agreeing, key=lambda c: c.ms if c.ms is not None else math.inf, default=None)
    return Verdict(
        op=case.op,
        dims=dict(case.dims),
        dtype=str(case.dtype).removeprefix("torch."),
        n_rows=case.n_rows,
        n_tokens=case.n_tokens,
        chosen=None if best is None else best.name,
        candidates=tuple(found),
    )


def _tried(case: Case, name: str, device: torch.device) -> Candidate:
    error = None
    try:
        error, note = _disagreement(case, name, device)
        if note:
            return Candidate(name, False, error, note=note)
        return Candidate(name, True, error, ms=_milliseconds(case, name, device))
    except torch.OutOfMemoryError:
        return Candidate(name, False, error, note="out of memory")
    except Exception as problem:  # whatever a kernel raises is the finding
        lines = str(problem).strip().splitlines() or [""]
        note = f"{type(problem).__name__}: {lines[0][:200]}"
        return Candidate(name, False, error, note=note)
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


# --- agreement ------------------------------------------------------------------------------------


def _disagreement(case: Case, name: str, device: torch.device) -> tuple[float, str]:
    """The largest relative error, and what is wrong with it, if anything."""
    n_rows, n_tokens = min(case.n_rows, SLICE_ROWS), min(case.n_tokens, SLICE_TOKENS)
    g = torch.Generator(device).manual_seed(0)
    inputs = case.make(n_rows, n_tokens, g)
    with _poisoned_memory():
        want, readings = _outcome(case, inputs.mapped(lambda x: x.double()), case.definition, g)
        got, _ = _outcome(case, inputs.mapped(lambda x: x), name, g, readings)
        errors = {key: _relative_error(got[key], want[key]) for key in want}
        worst = max(errors, key=lambda key: errors[key])
        if not errors[worst] <= ALLOWED[case.dtype]:
            return errors[worst], f"{worst} is off by {errors[worst]:.1e}"
        end = _first_document(inputs)
        if end is not None:
            leak = _leak(case, inputs, name, g, readings, got, end)
            if leak:
                return errors[worst], leak
    return errors[worst], ""


def _outcome(
    case: Case,
    inputs: Inputs,
    backend: str,
    g: torch.Generator,
    readings: tuple[Tensor, ...] | None = None,
) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """Outputs and gradients by name; `readings` are the gradients of the outputs."""
    outputs = case.run(inputs, backend)
    if readings is None:
        readings = tuple(_random(y, g).to(case.dtype) for y in outputs)
    leaves = list(inputs.leaves.values())
    given = [r.to(y.dtype) for r, y in zip(readings, outputs, strict=True)]
    gradients = torch.autograd.grad(outputs, leaves, given)
    found = {f"output {i + 1}": y.detach() for i, y in enumerate(outputs)}
    found |= {f"gradient of {n}": x for n, x in zip(inputs.leaves, gradients, strict=True)}
    return found, readings


def _random(like: Tensor, g: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=g, device=like.device).to(like.dtype)


def _relative_error(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm; infinite where something is not finite."""
    difference = (found.double() - wanted.double()).norm()
    size = wanted.double().norm()
    if not bool(torch.isfinite(difference)):
        return math.inf
    return float(difference / size) if float(size) else float(difference)


def _first_document(inputs: Inputs) -> int | None:
    """Where the first document of the first row ends; None if nothing follows it there."""
    if inputs.packing is None:
        return None
    ids = inputs.packing.ids[0]
    end = int((ids == ids[0]).sum())
    return end if end < len(ids) else None


def _leak(
    case: Case,
    inputs: Inputs,
    name: str,
    g: torch.Generator,
    readings: tuple[Tensor, ...],
    before: dict[str, Tensor],
    end: int,
) -> str:
    """What changes elsewhere when the first document has other numbers; empty if nothing does."""
    shape = inputs.packing.ids.shape if inputs.packing is not None else ()

    def other(x: Tensor) -> Tensor:
        if x.shape[:2] != shape:
            return x
        x = x.clone()
        x[0, :end] = x[0, :end].flip(0).mul(0.5)
        return x

    after, _ = _outcome(case, inputs.mapped(other), name, g, readings)
    for key, value in after.items():
        if value.shape[:2] == shape:
            # Token by token: what gets across may reach only the first ones.
            here, there = (x[0, end:].double().flatten(1) for x in (value, before[key]))
            changes = (here - there).norm(dim=1) / there.norm(dim=1).square().mean().sqrt()
            if not bool((changes <= ALLOWED[case.dtype] / 10).all()):
                return f"{key} depends on the document before it"
    return ""


@contextmanager
def _poisoned_memory() -> Iterator[None]:
    """Memory that was never written is NaN."""
    was_on = torch.are_deterministic_algorithms_enabled()
    was_mild = torch.is_deterministic_algorithms_warn_only_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = True
            yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fills
        torch.use_deterministic_algorithms(was_on, warn_only=was_mild)


# --- time -----------------------------------------------------------------------------------------


def _milliseconds(case: Case, name: str, device: torch.device) -> float:
    """Forward and backward at the shape of the run: the median of some rounds."""
    g = torch.Generator(device).manual_seed(0)
    inputs = case.make(case.n_rows, case.n_tokens, g).mapped(lambda x: x)
    leaves = list(inputs.leaves.values())
    readings = [_random(y, g) for y in case.run(inputs, name)]

    def call() -> None:
        torch.autograd.grad(case.run(inputs, name), leaves, readings)

    for _ in range(WARM_UP):
        call()
    measure = _gpu_seconds if device.type == "cuda" else _seconds
    return 1000 * statistics.median(measure(call, device) for _ in range(ROUNDS))


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - start) / CALLS


def _gpu_seconds(call: Callable[[], None], device: torch.device) -> float:
    """The device's own time: other work keeps it busy until calls are queued, so that what the
    host takes to launch kernels does not count; in training, too, the host runs ahead."""
    busy = torch.ones(4096, 4096, device=device, dtype=torch.float16)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    for _ in range(BUSY_PRODUCTS):
        busy @ busy
    start.record()
    for _ in range(CALLS):
        call()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1000 / CALLS
