"""What a server counts, in the form that Prometheus reads."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Counters of one server; a registry of its own, so that servers in one process differ."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        new = {"registry": self.registry}
        self.requests = Counter(
            "mixlab_requests", "Answered requests.", ["endpoint", "status"], **new
        )
        self.seconds = Histogram(
            "mixlab_request_seconds", "From a request's arrival to the end of its answer.",
            ["endpoint"], buckets=SECONDS, **new,
        )  # fmt: skip
        self.first_token = Histogram(
            "mixlab_first_token_seconds", "From a request's arrival to the first token drawn.",
            buckets=SECONDS, **new,
        )  # fmt: skip
        self.prompt_tokens = Counter("mixlab_prompt_tokens", "Tokens of accepted prompts.", **new)
        self.new_tokens = Counter("mixlab_new_tokens", "Tokens written.", **new)
        self.steps = Counter("mixlab_engine_steps", "Steps of the engine.", **new)
        self.refused = Counter("mixlab_refused", "Requests refused: the queue was full.", **new)
        self.cancelled = Counter(
            "mixlab_cancelled_answers", "Answers given up: client gone, or too slow.", **new
        )
        self.failures = Counter("mixlab_engine_failures", "Times the engine began anew.", **new)
        self._live = Gauge("mixlab_live_answers", "Answers being written.", **new)
        self._open = Gauge("mixlab_open_answers", "Answers being written or waiting.", **new)

    def watch(self, n_live: Callable[[], int], n_open: Callable[[], int]) -> None:
        """Read these counts whenever somebody looks."""
        self._live.set_function(n_live)
        self._open.set_function(n_open)

    def text(self) -> bytes:
        return generate_latest(self.registry)
