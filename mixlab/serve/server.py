"""Open a run, listen, and end in order."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from mixlab.core.errors import LabError
from mixlab.core.run_dir import RunDir
from mixlab.core.units import count
from mixlab.jobs.chat_format import open_chat_format
from mixlab.jobs.trained import TrainedModel, open_trained
from mixlab.serve.app import make_app
from mixlab.serve.gate import App, is_loopback
from mixlab.serve.metrics import Metrics
from mixlab.serve.service import Card, Service
from mixlab.serve.settings import ServeSettings
from mixlab.serve.worker import Worker

MIN_TOKEN = 8


def check_address(host: str, token: str | None, *, without_token: bool) -> None:
    """Refuse to listen for other machines without a token.

    Raises:
        LabError: names the ways out.
    """
    if token is not None:
        if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable():
            raise LabError(
                f"--token of {len(token)} characters: expected at least {MIN_TOKEN} printable "
                "ASCII characters, such as what `openssl rand -hex 16` prints."
            )
        if token != token.strip():
            raise LabError("--token: expected no blanks at its ends.")
        return
    if without_token or is_loopback(host):
        return
    raise LabError(
        f"--host = {host!r}: expected a loopback address such as 127.0.0.1, as there is no token, "
        "and anybody who reaches this machine could use the model. Set a token by --token or "
        "MIXLAB_TOKEN, or say --without-token."
    )


def open_service(
    path: Path | str, settings: ServeSettings, checkpoint: str | int = "best"
) -> tuple[Service, list[str]]:
    """A run as a service, and what its user must know.

    Raises:
        LabError: no such run or checkpoint, one that writes no text, or limits that do not fit it.
    """
    trained = open_trained(path, checkpoint)
    run = RunDir.open(path)
    chat = open_chat_format(run, trained.tokenizer)
    metrics = Metrics()
    worker = Worker(
        lambda: trained.engine(max_rows=settings.max_rows),
        max_queue=settings.max_queue,
        metrics=metrics,
    )
    metrics.watch(lambda: worker.n_live, lambda: worker.n_open)
    notes = list(trained.notes)
    if not chat.is_tuned:
        notes.append(
            "This is a base model: it goes on with a text as its training text would. A chat gets "
            "a continuation, not an answer, and may get nothing where the text could end."
        )
    service = Service(
        card=_card(run, trained, chat.template.name, chat.is_tuned),
        tokenizer=trained.tokenizer,
        encode=trained.encode,
        chat=chat,
        worker=worker,
        settings=settings,
        metrics=metrics,
    )
    return service, notes


def _card(run: RunDir, trained: TrainedModel, template: str, is_tuned: bool) -> Card:
    state = run.checkpoints_path / f"step-{trained.step:06d}"
    facts = {
        "step": trained.step,
        "is_training": trained.is_training,
        "context": trained.context,
        "template": template,
        "is_tuned": is_tuned,
        "notes": list(trained.notes),
    }
    return Card(run.path.resolve().name, int(state.stat().st_mtime), facts)


def serve(
    service: Service, *, host: str, port: int, token: str | None, tell: Callable[[str], None]
) -> None:
    """Answer until Ctrl-C or SIGTERM; those under way may end first.

    Raises:
        LabError: the address is taken or cannot be had.
    """
    app = make_app(service, token, is_local=token is None and is_loopback(host))
    listener = _listen(host, port)
    address, port = listener.getsockname()[:2]
    server = _Server(app, service, tell)
    where = f"[{address}]" if ":" in address else address
    tell(f"Serving {service.card.name} at http://{where}:{port}/v1 (Ctrl-C stops)")
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()
    tell(_summary(service.metrics))


class _Server(uvicorn.Server):
    """Refuses new answers as soon as it is asked to stop."""

    def __init__(
        self, app: App, service: Service, tell: Callable[[str], None] = lambda text: None
    ) -> None:
        config = uvicorn.Config(
            app,  # type: ignore[arg-type]
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=service.settings.shutdown_s,
            ws="none",
        )
        super().__init__(config)
        self._service, self._tell = service, tell

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a signal that was heard is not raised again after the end in order."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        caught = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in caught}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        worker, limit = self._service.worker, self._service.settings.shutdown_s
        worker.refuse_new()
        if worker.n_open and not self.should_exit:
            self._tell(
                f"Stopping; {worker.n_open} answers under way have {limit} s to end. Ctrl-C again "
                "stops at once."
            )
        super().handle_exit(sig, frame)


def _listen(host: str, port: int) -> socket.socket:
    """Bound here, so that a taken port is an error of the user and not a log line."""
    if not 0 <= port < 1 << 16:
        raise LabError(f"--port = {port}: expected 0 to 65535; 0 takes a free one.")
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LabError(
            f"cannot listen at {host}:{port}: {reason}. Choose another --port; 0 takes a free one."
        ) from None
    return listener


def _summary(metrics: Metrics) -> str:
    requests = sum(
        sample.value
        for family in metrics.requests.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    )
    tokens = next(iter(metrics.new_tokens.collect())).samples[0].value
    return f"Stopped after {count(requests)} requests and {count(tokens)} tokens written."
