"""Updates replayed as CUDA graphs.

A small model's kernels end sooner than a processor can launch the next ones. A recorded graph is
launched as a whole: the same kernels on the same memory, so that the numbers are the same, and only
inputs are copied in. Where launching takes longer than running, which is measured, that decides the
speed. Larger models lose only the short gaps between kernels, two or three percent, and hold their
activations' memory for good: they are recorded where there is plenty of it.
"""

import gc
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from mixlab.training import phases
from mixlab.training.objective import StepMetrics

PLAIN_UPDATES = 2
"""Updates of one form before it is timed: they compile and tune."""
MOST_GRAPHS = 4
"""Forms of batch that are recorded; each keeps memory of its own inputs."""
LAUNCH_SHARE = 0.7
"""Launching counts as the limit from this share of an update's time on."""
ROOM = 3
"""Free memory is plenty from so many times on what an update takes and gives back."""

Form = tuple
"""What must agree for a recorded update to fit: shapes, targets, kinds of packing."""


class Inputs(Protocol):
    """What one forward pass reads (`MicroBatch`)."""

    def form(self) -> Form | None:
        """See `Form`; None: such inputs are never recorded."""
        ...

    def resident(self, device: torch.device) -> "Inputs":
        """A copy on `device` that later inputs of the same form can be written into."""
        ...

    def write_into(self, resident: "Inputs") -> None:
        """Copy the values to where a recorded update reads them; waits for nothing."""
        ...


Run = Callable[[Sequence[Inputs]], StepMetrics]


class Recorded:
    """One update's forward and backward passes as a graph.

    Metrics and gradients are tensors of the graph: the next replay overwrites them.
    """

    def __init__(
        self,
        run: Run,
        parameters: Sequence[nn.Parameter],
        inputs: Sequence[Inputs],
        pool: Any = None,
    ) -> None:
        """Graphs of one `pool` share the memory of what they leave behind for nobody."""
        device = parameters[0].device
        self._parameters = parameters
        self._resident = [one.resident(device) for one in inputs]
        self._graph = torch.cuda.CUDAGraph()
        _forget_gradients(parameters)
        gc.collect()
        # Other threads may pin memory meanwhile, which a global recording would forbid them.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._metrics = run(self._resident)
        self._gradients = [p.grad for p in parameters]

    def replay(self, inputs: Sequence[Inputs]) -> StepMetrics:
        """The update for other inputs of the same form."""
        for one, resident in zip(inputs, self._resident, strict=True):
            one.write_into(resident)
        self._graph.replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return self._metrics


class Replayer:
    """Runs updates, and records those forms that come again and are limited by launching.

    Attributes:
        verdict: what was found, for the record.
    """

    def __init__(
        self,
        run: Run,
        parameters: Sequence[nn.Parameter],
        *,
        always: bool = False,
        record: Callable[..., Recorded] | None = None,
        launch_share: Callable[[Callable[[], StepMetrics]], tuple[StepMetrics, float]]
        | None = None,
        has_room: Callable[[], bool] | None = None,
    ) -> None:
        """`always` records without a look at time or memory; the rest stand in for the device."""
        self._run, self._parameters, self._always = run, parameters, always
        self._record = record or partial(Recorded, pool=torch.cuda.graph_pool_handle())
        self._launch_share, self._has_room = launch_share or timed_launch, has_room or has_memory
        self._seen: Counter[Form] = Counter()
        self._graphs: dict[Form, Recorded] = {}
        self._is_off = False
        self.verdict = "updates are launched kernel by kernel"

    def __call__(self, inputs: Sequence[Inputs]) -> StepMetrics:
        """One update's gradients and figures."""
        forms = [one.form() for one in inputs]
        # Phases cannot be told apart within a graph.
        if self._is_off or None in forms or phases.are_heard():
            return self._run(inputs)
        form = tuple(forms)
        if form in self._graphs:
            return self._graphs[form].replay(inputs)
        self._seen[form] += 1
        if self._seen[form] <= PLAIN_UPDATES or len(self._graphs) == MOST_GRAPHS:
            return self._run(inputs)
        if self._seen[form] == PLAIN_UPDATES + 1 and not self._always:
            metrics, share = self._launch_share(lambda: self._run(inputs))
            if share < LAUNCH_SHARE and not self._has_room():
                self._is_off = True
                self.verdict = (
                    f"launching kernels takes {share:.0%} of an update and memory is not plenty, "
                    "so no CUDA graph"
                )
            return metrics
        return self._first_replay(form, inputs)

    def _first_replay(self, form: Form, inputs: Sequence[Inputs]) -> StepMetrics:
        try:
            self._graphs[form] = self._record(self._run, self._parameters, inputs)
        except RuntimeError as error:  # an operation that cannot be recorded
            self._is_off = True
            first_line = str(error).strip().split("\n")[0]
            self.verdict = f"updates could not be recorded as a CUDA graph: {first_line}"
            _forget_gradients(self._parameters)
            return self._run(inputs)
        self.verdict = "updates are replayed as a CUDA graph"
        return self._graphs[form].replay(inputs)


def timed_launch(run: Callable[[], StepMetrics]) -> tuple[StepMetrics, float]:
    """Run an update by itself; also the share of its time that launching it took."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    metrics = run()
    launched = time.perf_counter()
    torch.cuda.synchronize()
    return metrics, (launched - start) / (time.perf_counter() - start)


def has_memory() -> bool:
    """Whether the device has plenty beside what an update takes and gives back."""
    taken = torch.cuda.memory_allocated()
    need = torch.cuda.max_memory_allocated() - taken
    free, total = torch.cuda.mem_get_info()
    granted = torch.cuda.get_per_process_memory_fraction() * total - taken
    return min(free + torch.cuda.memory_reserved() - taken, granted) >= ROOM * need


def _forget_gradients(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None
