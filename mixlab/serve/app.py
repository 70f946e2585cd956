"""The web application: endpoints, their description, and errors in one form."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from mixlab import __version__
from mixlab.core.nearest import did_you_mean
from mixlab.serve.answers import ChatCompletion, Completion, ErrorBody
from mixlab.serve.errors import ApiError
from mixlab.serve.gate import App, Gate
from mixlab.serve.requests import ChatRequest, CompletionRequest, Sampled, UnsupportedError
from mixlab.serve.service import Service

STREAM = {
    "text/event-stream": {
        "schema": {
            "type": "object",
            "description": "One event: a piece of the answer as JSON, or [DONE] after the last.",
            "properties": {"data": {"type": "string"}},
        }
    }
}
ENDPOINTS = frozenset(
    {"/v1/models", "/v1/completions", "/v1/chat/completions", "/health", "/metrics"}
)


def make_app(service: Service, token: str | None, *, is_local: bool = False) -> App:
    """The application, with the gate before it; starts and ends the service's worker.

    With `is_local`, requests for another host than this machine's loopback are refused.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        service.worker.close()

    app = FastAPI(
        title="mixlab",
        version=__version__,
        summary="A model trained with mixlab, behind the OpenAI API.",
        lifespan=lifespan,
        docs_url=None,  # these pages would load scripts from elsewhere
        redoc_url=None,
    )
    _add_models(app, service)
    _add_answers(app, service)
    _add_watching(app, service)
    _add_errors(app)
    described = app.openapi

    def openapi() -> dict[str, Any]:
        """Without FastAPI's own form of validation errors, which is never sent."""
        tree = described()
        for path in tree["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            tree["components"]["schemas"].pop(name, None)
        return tree

    app.openapi = openapi  # type: ignore[method-assign]
    return Gate(
        app, token=token, is_local=is_local, settings=service.settings, metrics=service.metrics,
        endpoints=ENDPOINTS,
    )  # fmt: skip


def _add_models(app: FastAPI, service: Service) -> None:
    card = service.card
    entry = {
        "id": card.name, "object": "model", "created": card.created, "owned_by": "mixlab",
        "mixlab": card.facts,
    }  # fmt: skip

    @app.get("/v1/models", responses=_errors(401))
    async def models() -> dict[str, Any]:
        """The one model of this server."""
        return {"object": "list", "data": [entry]}

    @app.get("/v1/models/{model}", responses=_errors(401, 404))
    async def model(model: str) -> dict[str, Any]:
        """What is known of the model."""
        if model != card.name:
            raise ApiError(
                404, f"model = {model!r}: expected {card.name!r}.", code="model_not_found"
            )
        return entry


def _add_answers(app: FastAPI, service: Service) -> None:
    errors = _errors(400, 401, 404, 408, 413, 429, 500, 503, 504)

    @app.post(
        "/v1/completions",
        response_model=Completion,
        responses={200: {"content": STREAM, "description": "The answer, whole or as a stream."}}
        | errors,
    )
    async def completions(request: HttpRequest, body: CompletionRequest) -> Response:
        """Continue texts."""
        return await service.complete(request, body)

    @app.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={200: {"content": STREAM, "description": "The answer, whole or as a stream."}}
        | errors,
    )
    async def chat_completions(request: HttpRequest, body: ChatRequest) -> Response:
        """Answer a conversation."""
        return await service.chat(request, body)


def _add_watching(app: FastAPI, service: Service) -> None:
    worker = service.worker

    @app.get("/health", responses=_errors(503))
    async def health() -> dict[str, Any]:
        """Whether the model answers."""
        if not worker.is_alive:
            raise ApiError(503, "The engine is not running.", kind="server_error")
        return {"status": "ok", "live": worker.n_live, "open": worker.n_open}

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}} | _errors(401),
    )
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(
            service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorBody} for status in statuses}


# --- errors ---------------------------------------------------------------------------------------


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def api_error(request: HttpRequest, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: HttpRequest, error: RequestValidationError) -> JSONResponse:
        return _explain(error).response()

    @app.exception_handler(HTTPException)
    async def other(request: HttpRequest, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}."
        answer = ApiError(error.status_code, message).response()
        answer.headers.update(error.headers or {})
        return answer


def _explain(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong, by the name of its field."""
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if part != "body"]
    reason = first.get("ctx", {}).get("error")
    if first["type"] == "json_invalid":
        return ApiError(400, f"The body is not valid JSON: {reason}.", code="invalid_json")
    if isinstance(reason, UnsupportedError):
        return ApiError(400, str(reason), param=reason.name, code="unsupported_parameter")
    if first["type"] == "extra_forbidden":
        name = where[-1]
        known = {*CompletionRequest.model_fields, *ChatRequest.model_fields}
        hint = did_you_mean(name, known)
        return ApiError(
            400, f"{'.'.join(where)!r}: expected a known field.{hint}", param=name,
            code="unknown_parameter",
        )  # fmt: skip
    if isinstance(reason, ValueError):
        return ApiError(400, f"{reason}.", param=str(reason).split(":")[0])
    param = where[0] if where else None
    if param is None:
        return ApiError(400, "The body: expected a JSON object, sent as application/json.")
    # A field that takes several types gives one reason for each.
    reasons = dict.fromkeys(
        e["msg"][0].lower() + e["msg"][1:]
        for e in error.errors()
        if [part for part in e["loc"] if part != "body"][:1] == [param]
    )
    is_field = param in Sampled.model_fields or len(where) == 1
    path = param if is_field and len(reasons) > 1 else ".".join(where)
    return ApiError(400, f"{path}: {'; or: '.join(list(reasons)[:4])}.", param=param)
