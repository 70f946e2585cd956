"""`mixlab generate`: let a trained model continue one or several texts."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixlab.cli.text_options import (
    Checkpoint,
    Depth,
    MinP,
    RepetitionPenalty,
    Temperature,
    Threshold,
    TopK,
    TopP,
)

if TYPE_CHECKING:
    from mixlab.jobs.trained import TrainedModel


def generate(
    run: Annotated[Path, typer.Argument(help="A run folder, such as runs/quickstart.")],
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="The text to continue; may be given several times. '' begins a text."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="A file with one prompt per line; - is standard input."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest continuation, in tokens.")] = 120,
    temperature: Temperature = 0.8,
    top_k: TopK = 40,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; may be given several times.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same text.")] = 0,
    checkpoint: Checkpoint = "best",
    depth: Depth = None,
    threshold: Threshold = None,
    window: Annotated[
        bool,
        typer.Option("--window", help="Let a prompt that is too long lose its beginning."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per prompt.")
    ] = False,
) -> None:
    """Continue texts with a trained model, token by token; several are written at once.

    \b
    Examples:
      mixlab generate runs/quickstart --prompt "def "
      mixlab generate runs/quickstart --prompt "import " --temperature 0 --max-new-tokens 40
      mixlab generate runs/quickstart --prompt "class " --prompt "def " --min-p 0.1
      mixlab generate runs/quickstart --file prompts.txt --json > texts.jsonl
    """
    from mixlab.jobs.process import tune_process

    tune_process()
    from mixlab.core.errors import LabError
    from mixlab.jobs.trained import open_trained, sampling_of

    prompts = [*(prompt or []), *(_lines(file) if file is not None else [])]
    if not prompts:
        raise LabError(
            "no prompt was given: expected --prompt TEXT, or --file FILE with one prompt per line. "
            "--prompt '' begins a text."
        )
    sampling = sampling_of(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty,
    )  # fmt: skip
    model = open_trained(run, checkpoint, depth=depth, threshold=threshold)
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens, "sampling": sampling, "seed": seed, "stop": stop or [],
        "window": window,
    }  # fmt: skip
    for note in [*model.notes, *_cuts(model, prompts, settings)]:
        typer.echo(note, err=True)
    if as_json:
        for text, answer in zip(prompts, model.generate_many(prompts, **settings), strict=True):
            print(json.dumps({"prompt": text, "text": answer}, ensure_ascii=False))
        return
    printer = _InOrder(prompts)
    model.generate_many(prompts, on_text=printer, **settings)


def _cuts(model: "TrainedModel", prompts: list[str], settings: dict[str, Any]) -> list[str]:
    """A sentence for every prompt that loses its beginning; errors come before any text."""
    engine, notes = model.engine(), []
    for text in prompts:
        kept, n_dropped = engine.fit(model.request(text, **settings))
        if n_dropped:
            notes.append(
                f"prompt of {len(kept) + n_dropped} tokens: the first {n_dropped} are left out, as "
                f"the context is {engine.context} tokens with the answer."
            )
    return notes


def _lines(file: Path) -> list[str]:
    from mixlab.core.errors import LabError

    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except OSError as error:
        raise LabError(f"--file {file}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise LabError(
            f"--file {file}: expected UTF-8 text, which byte {error.start} is not."
        ) from None
    return [line for line in text.splitlines() if line.strip()]


class _InOrder:
    """Texts one after the other; the first that is not complete appears as it is written."""

    def __init__(self, prompts: list[str]) -> None:
        self._prompts = prompts
        self._pending: dict[int, list[str]] = {}
        self._ended: set[int] = set()
        self._current = 0
        self._begin()

    def __call__(self, place: int, text: str, is_end: bool) -> None:
        if is_end:
            self._ended.add(place)
        self._pending.setdefault(place, []).append(text)
        while self._current < len(self._prompts):
            write("".join(self._pending.pop(self._current, [])))
            if self._current not in self._ended:
                return
            write("\n")
            self._current += 1
            self._begin()

    def _begin(self) -> None:
        if self._current == len(self._prompts):
            return
        if len(self._prompts) > 1:
            write(f"--- {self._current + 1} of {len(self._prompts)}\n")
        write(self._prompts[self._current])


def write(text: str) -> None:
    """Text to standard output at once; on a terminal without characters that would steer it."""
    if sys.stdout.isatty():
        text = "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in text)
    sys.stdout.write(text)
    sys.stdout.flush()


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
