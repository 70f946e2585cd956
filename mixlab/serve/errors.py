"""Errors in the form of the OpenAI API: {"error": {"message", "type", "param", "code"}}."""

import json
from typing import Any

from fastapi.responses import JSONResponse


class ApiError(Exception):
    """An answer other than 200."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.kind, self.retry_after_s = kind, retry_after_s

    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
            }
        }  # fmt: skip

    def headers(self) -> dict[str, str]:
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers())


def busy(retry_after_s: int) -> ApiError:
    return ApiError(
        429, f"The queue of this server is full. Try again in {retry_after_s} s.",
        kind="rate_limit_error", code="queue_full", retry_after_s=retry_after_s,
    )  # fmt: skip


def too_slow(timeout_s: float) -> ApiError:
    message = f"The answer took longer than {timeout_s:g} s, the limit of this server."
    return ApiError(504, message, kind="timeout_error", code="timeout")


def broken(message: str) -> ApiError:
    return ApiError(500, message, kind="server_error", code="engine_error")


def closing() -> ApiError:
    return ApiError(503, "This server is shutting down.", kind="server_error", code="shutdown")


def sse(tree: dict[str, Any]) -> str:
    """One event of a stream."""
    return f"data: {json.dumps(tree, ensure_ascii=False, separators=(',', ':'))}\n\n"
