"""Speed, time left and use of the hardware, from a clock that the caller gives."""

from collections import deque
from collections.abc import Callable


class Throughput:
    """Tokens per second over the last updates, without what happens between two sittings.

    Fed with the run's cumulative number of tokens, which only grows.
    """

    def __init__(self, *, clock: Callable[[], float], window: int = 20) -> None:
        assert window >= 1, "at least one update makes a rate"
        self._clock = clock
        self._window = window
        self._marks: deque[tuple[float, int]] = deque(maxlen=window + 1)  # (seconds, tokens)

    def restart(self, tokens: int) -> None:
        """Start timing from `tokens`, after an evaluation, a save or anything else untimed.

        The earlier part of the window is kept and moved up to now, so that the pause counts
        neither as time nor as work.
        """
        now = self._clock()
        if self._marks:
            last_s, last_tokens = self._marks[-1]
            shifted = [(s + now - last_s, n + tokens - last_tokens) for s, n in self._marks]
            self._marks = deque(shifted, maxlen=self._window + 1)
        else:
            self._marks.append((now, tokens))

    def update(self, tokens: int) -> float | None:
        """Note that `tokens` are done by now; returns `tokens_per_s`."""
        self._marks.append((self._clock(), tokens))
        return self.tokens_per_s()

    def tokens_per_s(self) -> float | None:
        """The rate over the window; None before the first update or while no time has passed."""
        if len(self._marks) < 2:
            return None
        (first_s, first_tokens), (last_s, last_tokens) = self._marks[0], self._marks[-1]
        if last_s <= first_s:
            return None
        return (last_tokens - first_tokens) / (last_s - first_s)

    def eta_s(self, tokens_left: int) -> float | None:
        """Seconds until `tokens_left` are done at the present rate; None if it is not known."""
        rate = self.tokens_per_s()
        return max(0, tokens_left) / rate if rate else None


def mfu(tokens_per_s: float, flops_per_token: float, peak_flops: float) -> float:
    """Model FLOPs utilisation: the share of the peak FLOP/s that the model's formula accounts for.

    Source: Chowdhery et al., "PaLM", arXiv:2204.02311, appendix B. `flops_per_token` is that of
    training, backward included; recomputation does not count as work.
    """
    return tokens_per_s * flops_per_token / peak_flops
