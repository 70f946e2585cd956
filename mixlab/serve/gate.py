"""What every request passes before it is read: host, bearer token, size and time of its body.

Plain ASGI rather than FastAPI's middleware, which would stand between a stream and the news that
its client has gone.
"""

import asyncio
import hmac
import ipaddress
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from mixlab.serve.errors import ApiError
from mixlab.serve.metrics import Metrics
from mixlab.serve.settings import ServeSettings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/health",)
"""Answered without a token, for whoever watches over the process."""
DRAINED_BYTES = 64 << 20
"""A body that is too large is read up to here, so that its sender hears the answer."""
UNKNOWN = "other"


class Gate:
    """Wraps an application."""

    def __init__(
        self, app: App, *, token: str | None, is_local: bool, settings: ServeSettings,
        metrics: Metrics, endpoints: frozenset[str],
    ) -> None:  # fmt: skip
        self._app, self._settings, self._metrics = app, settings, metrics
        self._token = None if token is None else token.encode()
        self._endpoints, self._is_local = endpoints, is_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.monotonic()
        endpoint = scope["path"] if scope["path"] in self._endpoints else UNKNOWN
        status = 499  # the client left before there was an answer

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check_host(scope)
            self._check_token(scope)
            body = await self._read(scope, receive)
        except ApiError as error:
            await error.response()(scope, receive, counted)
        except _Gone:
            pass
        else:
            await self._app(scope, _replay(body, receive), counted)
        finally:
            self._metrics.requests.labels(endpoint, str(status)).inc()
            self._metrics.seconds.labels(endpoint).observe(time.monotonic() - start)

    def _check_host(self, scope: Scope) -> None:
        """A page in a browser may give its own name this machine's address (DNS rebinding)."""
        if not self._is_local:
            return
        given = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        try:
            name = urlsplit(f"//{given}").hostname or ""
        except ValueError:
            name = given
        if given and not is_loopback(name):
            raise ApiError(
                421, "This server answers for localhost and loopback addresses only. To reach it "
                "by another name, start it with a token.",
            )  # fmt: skip

    def _check_token(self, scope: Scope) -> None:
        if self._token is None or scope["path"] in OPEN_PATHS:
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, token = given.partition(b" ")
        # Both sides always, so that the time says nothing of what was wrong.
        is_right = hmac.compare_digest(token.strip(), self._token)
        if scheme.lower() != b"bearer" or not is_right:
            raise ApiError(
                401, "Expected the header 'Authorization: Bearer TOKEN' with the token of this "
                "server.", code="invalid_api_key",
            )  # fmt: skip

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body, within its limits of size and time."""
        limit = self._settings.max_body_bytes
        body, n_bytes = bytearray(), 0
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    part = message.get("body", b"")
                    n_bytes += len(part)
                    if n_bytes <= limit:
                        body += part
                    if not message.get("more_body", False) or n_bytes > DRAINED_BYTES:
                        break
        except TimeoutError:
            raise ApiError(
                408, f"The request took longer than {self._settings.body_timeout_s:g} s to arrive.",
                code="timeout",
            ) from None  # fmt: skip
        if n_bytes > limit:
            raise ApiError(
                413, f"The request's body is larger than {limit} bytes, the limit of this server.",
                code="request_too_large",
            )  # fmt: skip
        return bytes(body)


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class _Gone(Exception):  # noqa: N818 (a state, not a mistake)
    """The client left while it was sending."""


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once more, then what comes after it: the client's leaving."""
    is_read = False

    async def again() -> Message:
        nonlocal is_read
        if not is_read:
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again
