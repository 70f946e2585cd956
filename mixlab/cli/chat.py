"""`mixlab chat`: talk to a trained model in the terminal."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from mixlab.core.errors import LabError

if TYPE_CHECKING:
    from mixlab.jobs.chat import Conversation

HELP = """\
  /help            these lines
  /reset           forget the conversation
  /system TEXT     message that stands before the conversation; without TEXT: none
  /temp NUMBER     temperature; 0 takes the likeliest token
  /tokens NUMBER   longest answer
  /exit            leave; so does Ctrl-D
  A line that ends with \\ goes on in the next one; three quotes (\"\"\") begin and end a block.
  Ctrl-C stops an answer; a second one leaves."""
BLOCK = '"""'


def chat(
    run: Annotated[Path, typer.Argument(help="A run folder, such as runs/quickstart-sft.")],
    system: Annotated[str, typer.Option(help="Message that stands before the conversation.")] = "",
    temperature: Temperature = 0.8,
    top_k: TopK = 40,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
    seed: Annotated[int, typer.Option(help="Same seed, same conversation.")] = 0,
    checkpoint: Checkpoint = "best",
    depth: Depth = None,
    threshold: Threshold = None,
) -> None:
    """Talk to a trained model: answers appear as they are written, /help lists the commands.

    A run that was tuned on conversations (`mixlab sft`) answers. One that was trained on plain text
    goes on with what you write. Standard input may also be a file with one message per line.

    \b
    Examples:
      mixlab chat runs/quickstart-sft
      mixlab chat runs/quickstart --temperature 0.5 --max-new-tokens 60
      mixlab chat runs/quickstart-sft --system "Answer with one word." < questions.txt
    """
    from mixlab.jobs.process import tune_process

    tune_process()
    from mixlab.jobs.chat import greeting, open_conversation
    from mixlab.jobs.trained import open_trained, sampling_of

    sampling = sampling_of(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty,
    )  # fmt: skip
    model = open_trained(run, checkpoint, depth=depth, threshold=threshold)
    conversation = open_conversation(
        model, sampling=sampling, max_new_tokens=max_new_tokens, seed=seed, system=system
    )
    for line in greeting(conversation):
        _note(line)
    talk(conversation, _Terminal() if sys.stdin.isatty() else _Lines())


def talk(conversation: "Conversation", source: "_Lines") -> None:
    """Turns until the input ends, /exit, or a second Ctrl-C."""
    try:
        _turns(conversation, source)
    except KeyboardInterrupt:  # came while the first one was still being answered
        sys.stdout.write("\n")


def _turns(conversation: "Conversation", source: "_Lines") -> None:
    if source.is_terminal:
        _note("/help lists the commands, Ctrl-D leaves.")
    interrupted = answering = False
    while True:
        try:
            text = source.read()
            interrupted = False
            if text.startswith("/"):
                if not command(conversation, text):
                    return
            elif text.strip() or conversation.is_base:
                answering = True
                interrupted = _answer(conversation, text)
            answering = False
        except EOFError:
            return
        except LabError as error:
            answering = False
            _note(f"{error}")
        except KeyboardInterrupt:  # `answering`: the second one, the first has stopped the answer
            if interrupted or answering or not source.is_terminal:
                sys.stdout.write("\n")
                return
            interrupted = True
            _note("\nCtrl-C again or Ctrl-D leaves.")


def _answer(conversation: "Conversation", text: str) -> bool:
    """Write the next answer as it comes; whether Ctrl-C stopped it."""
    from mixlab.cli.generate import write

    notes: list[str] = []
    is_empty = True
    with _stop_on_ctrl_c() as is_stopped:
        pieces = conversation.answer(text, notes.append)
        for piece in pieces:
            for note in notes:
                _note(note)
            notes.clear()
            write(piece)
            is_empty = is_empty and not piece.strip()
            if is_stopped():
                pieces.close()
                break
    write("\n")
    if is_stopped():
        _note("Stopped; the answer so far is kept.")
    elif is_empty and conversation.is_base:
        _note("To the model the text was complete, so it wrote nothing. Write more of it, or an "
              "empty line to let it try again.")  # fmt: skip
        notes.clear()
    elif is_empty:
        _note("The model ended its answer at once.")
    for note in notes:
        _note(note)
    return is_stopped()


@contextmanager
def _stop_on_ctrl_c() -> Iterator[Callable[[], bool]]:
    """Ctrl-C as a wish, so that no step is torn apart; a second one acts as usual."""
    heard = []
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: object) -> None:
        heard.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: bool(heard)
    finally:
        signal.signal(signal.SIGINT, before)


# --- commands -------------------------------------------------------------------------------------


def command(conversation: "Conversation", line: str) -> bool:
    """Carry out a line that begins with a slash; whether to go on.

    Raises:
        LabError: an unknown command, or a value out of range.
    """
    name, _, value = line.strip().partition(" ")
    if name in ("/exit", "/quit"):
        return False
    known = {
        "/help": _help, "/reset": _reset, "/system": _system, "/temp": _temperature,
        "/tokens": _tokens,
    }  # fmt: skip
    if name not in known:
        raise LabError(f"{name}: expected one of {', '.join(known)}, /exit.")
    _note(known[name](conversation, value.strip()))
    return True


def _help(conversation: "Conversation", value: str) -> str:
    return HELP


def _reset(conversation: "Conversation", value: str) -> str:
    conversation.reset()
    return "The conversation is forgotten."


def _system(conversation: "Conversation", value: str) -> str:
    conversation.set_system(value)
    return f"System message: {value}" if value else "No system message."


def _temperature(conversation: "Conversation", value: str) -> str:
    from mixlab.jobs.trained import sampling_of

    current = conversation.sampling
    if value:
        settings = {**current.model_dump(), "temperature": _number("/temp", value, float)}
        conversation.sampling = sampling_of(**settings)
    return f"Temperature {conversation.sampling.temperature:g}."


def _tokens(conversation: "Conversation", value: str) -> str:
    if value:
        number = int(_number("/tokens", value, int))
        if number < 1:
            raise LabError(f"/tokens {value}: expected at least 1.")
        conversation.max_new_tokens = number
    return f"Answers of at most {conversation.max_new_tokens} tokens."


def _number(name: str, value: str, kind: Callable[[str], float]) -> float:
    try:
        return kind(value)
    except ValueError:
        raise LabError(f"{name} {value}: expected a number.") from None


# --- input and output -----------------------------------------------------------------------------


class _Lines:
    """Messages from a file or a pipe: one per line, blocks and commands as at a terminal."""

    is_terminal = False

    def read(self) -> str:
        """The next message.

        Raises:
            EOFError: there is none.
        """
        line = self._line("> ")
        if line.strip().startswith(BLOCK):
            return self._block(line.strip()[len(BLOCK) :])
        lines = []
        while line.endswith("\\"):
            lines.append(line[:-1])
            line = self._line(". ")
        return "\n".join([*lines, line])

    def _block(self, first: str) -> str:
        lines, line = [], first
        while not line.rstrip().endswith(BLOCK):
            lines.append(line)
            line = self._line(". ")
        lines.append(line.rstrip()[: -len(BLOCK)])
        return "\n".join(lines).strip("\n")

    def _line(self, prompt: str) -> str:
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")


class _Terminal(_Lines):
    """Lines typed at a terminal, with the arrow keys of the readline library where it exists."""

    is_terminal = True

    def __init__(self) -> None:
        with suppress(ImportError):
            import readline  # noqa: F401 (makes `input` edit lines and remember them)

    def _line(self, prompt: str) -> str:
        try:
            return input(prompt)
        except EOFError:
            sys.stdout.write("\n")
            raise
        except UnicodeDecodeError:
            _note("That was not UTF-8 text.")
            return ""


def _note(text: str) -> None:
    """Words of the program, not of the model: on standard error, dim on a terminal."""
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        text = f"\033[2m{text}\033[0m"
    print(text, file=sys.stderr, flush=True)
