"""A decoding step that does the same operations every time, and as a CUDA graph.

On a GPU a step of a small model is hundreds of kernels of a few microseconds each, and launching
them from Python takes longer than running them. A graph launches all of them at once. It needs
tensors that stay where they are: tokens and lengths are copied into fixed places, the number of
rows is rounded up to a power of two, and attention always looks at all slots of the cache, hiding
the empty ones.
Shapes: B rows, N rows rounded up, V vocabulary.
"""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mixlab.infer.decoding.rows import RopeTables, Rows

N_WARM_UPS = 2
"""Runs before a capture, so that libraries have chosen their kernels."""


class StaticStep:
    """Steps of up to N rows over caches of `n_slots` slots, from tensors in fixed places."""

    def __init__(
        self, forward: Callable[[Tensor, Rows], Tensor], n_rows: int, n_slots: int,
        tables: RopeTables, device: torch.device,
    ) -> None:  # fmt: skip
        self._forward, self._n_slots, self._tables = forward, n_slots, tables
        is_pinned = device.type == "cuda"
        self._given = torch.zeros(2, n_rows, dtype=torch.int64, pin_memory=is_pinned)
        self._inputs = torch.zeros(2, n_rows, dtype=torch.int64, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None

    def run(self) -> Tensor:
        """(N, V) logits from what the fixed places hold."""
        tokens, n_seen = self._inputs
        return self._forward(tokens, Rows(n_seen, self._n_slots, None, self._tables))

    def fill(self, tokens: Sequence[int], lengths: Sequence[int]) -> None:
        """Put the tokens and lengths of the first rows into the fixed places."""
        self._given.zero_()
        self._given[0, : len(tokens)] = torch.tensor(tokens)
        self._given[1, : len(tokens)] = torch.tensor(lengths)
        self._inputs.copy_(self._given, non_blocking=True)

    def capture(self) -> None:
        """Record the step, for what the fixed places hold.

        Before that it runs, so caches get what the next call would write there anyway; states that
        a step replaces have to be put aside by the caller.

        Raises:
            RuntimeError: some operation cannot be recorded.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(N_WARM_UPS):
                self.run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._logits = self.run()
        self._graph = graph

    def __call__(self, tokens: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """(B, V) logits; they stand in a fixed place too, until the next step."""
        n = len(tokens)
        self.fill(tokens, lengths)
        if self._graph is None:
            return self.run()[:n]
        self._graph.replay()
        assert self._logits is not None
        return self._logits[:n]


class GraphedSteps:
    """A recorded step for each number of rows that comes up; made anew when caches have moved."""

    def __init__(self) -> None:
        self._steps: dict[tuple[int, int], StaticStep] = {}
        self.problem: str | None = None
        """Why steps are not recorded, once that was tried."""

    def clear(self) -> None:
        """Forget all: the caches that they write to are not those of the model any more."""
        self._steps.clear()

    def get(self, n_rows: int, n_slots: int, make: Callable[[], StaticStep]) -> StaticStep | None:
        """The step for these sizes; None if it cannot be recorded, which is said once."""
        if self.problem is not None:
            return None
        key = n_rows, n_slots
        if key not in self._steps:
            try:
                self._steps[key] = make()
            except RuntimeError as error:
                self.problem = str(error).partition("\n")[0]
                warnings.warn(
                    f"decoding steps are not recorded as a CUDA graph and run one by one, which is "
                    f"slower: {self.problem}",
                    stacklevel=2,
                )
                return None
        return self._steps[key]


def rounded_up(n_rows: int) -> int:
    """The next power of two."""
    return 1 << (n_rows - 1).bit_length()
