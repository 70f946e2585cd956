"""`mixlab serve`: a trained model behind the OpenAI API."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mixlab.core.errors import MissingPackageError

PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


def serve(
    run: Annotated[Path, typer.Argument(help="A run folder, such as runs/quickstart.")],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(envvar="MIXLAB_TOKEN", help="Clients must send it; better in MIXLAB_TOKEN."),
    ] = None,
    without_token: Annotated[
        bool, typer.Option("--without-token", help="Listen beyond this machine without one.")
    ] = False,
    checkpoint: Annotated[
        str, typer.Option(help="best, last, or the number of a step that was kept.")
    ] = "best",
    max_rows: Annotated[int, typer.Option(help="Answers written at the same time.")] = 8,
    max_queue: Annotated[int, typer.Option(help="Answers that may wait; more get 429.")] = 64,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(help="Longest prompt; default: what the context allows.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer; default: what the context allows.")
    ] = None,
    max_body_bytes: Annotated[int, typer.Option(help="Largest request; more get 413.")] = 1 << 20,
    timeout: Annotated[float, typer.Option(help="Seconds that an answer may take.")] = 300.0,
) -> None:
    """Serve a trained model to the OpenAI client and all that speaks its API.

    Endpoints: /v1/models, /v1/completions, /v1/chat/completions, /health, /metrics,
    /openapi.json.

    \b
    Examples:
      mixlab serve runs/quickstart
      MIXLAB_TOKEN=... mixlab serve runs/quickstart --host 0.0.0.0 --port 9000
      mixlab serve runs/quickstart --max-rows 32 --max-new-tokens 512
    """
    from importlib.util import find_spec

    from mixlab.jobs.process import tune_process

    tune_process()
    for package in PACKAGES:
        if find_spec(package) is None:
            raise MissingPackageError(package.replace("_", "-"), "mixlab serve", "serve")
    from mixlab.core.config import decode
    from mixlab.serve.server import check_address, open_service
    from mixlab.serve.server import serve as listen
    from mixlab.serve.settings import ServeSettings

    limits: dict[str, Any] = {
        "max_rows": max_rows, "max_queue": max_queue, "max_prompt_tokens": max_prompt_tokens,
        "max_new_tokens": max_new_tokens, "max_body_bytes": max_body_bytes, "timeout_s": timeout,
    }  # fmt: skip
    settings = decode(ServeSettings, limits)
    check_address(host, token, without_token=without_token)
    typer.echo(f"Opening {run} ...", err=True)
    service, notes = open_service(run, settings, checkpoint)
    for note in notes:
        typer.echo(note, err=True)
    listen(service, host=host, port=port, token=token, tell=lambda t: typer.echo(t, err=True))
