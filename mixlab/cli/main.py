"""The console script `mixlab`: one file per command, and one place where errors become exits."""

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from mixlab import __version__
from mixlab.cli import (
    bench,
    chat,
    check,
    claim,
    compare,
    doctor,
    export,
    extend,
    generate,
    import_,
    listing,
    serve,
    sft,
    show,
    solve,
    study,
    train,
)
from mixlab.cli import eval as evaluation
from mixlab.core.errors import LabError
from mixlab.jobs.launched import is_follower, n_processes

USAGE_ERROR, INTERRUPTED = 2, 130
SHARED = {"train", "extend", "sft", "bench"}
"""Commands whose work several processes share."""

app = typer.Typer(
    name="mixlab",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mixlab {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A research lab for efficient small language models.

    \b
    Start here:
      mixlab train quickstart          train a small model, about two minutes on a CPU
      mixlab list recipes              what else can be trained
      mixlab show quickstart           what a recipe is made of, and what it costs
      mixlab check quickstart          proof that the model is what it claims to be
      mixlab generate runs/quickstart --prompt "def "
      mixlab eval runs/quickstart      what it scores, with standard errors
    """


app.command("train")(train.train)
app.command("extend")(extend.extend)
app.command("sft")(sft.sft)
app.command("show")(show.show)
app.command("check")(check.check)
app.command("solve")(solve.solve)
app.command("compare")(compare.compare)
app.add_typer(claim.app, name="claim")
app.command("list")(listing.list_)
app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("eval")(evaluation.eval_)
app.command("serve")(serve.serve)
app.command("export")(export.export)
app.command("import")(import_.import_)
app.command("bench")(bench.bench)
app.command("doctor")(doctor.doctor)
app.add_typer(study.app, name="study")


def main() -> None:
    """Run the command line; a user's error is one paragraph and exit status 2.

    Of several processes started by torchrun the first one speaks for all.
    """
    if is_follower():
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    warnings.showwarning = _show_warning
    try:
        _refuse_many_processes()
        app()
    except LabError as error:
        command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
        out = sys.__stderr__ if type(error).__name__ == "RankError" else sys.stderr
        print(f"{' '.join(filter(None, ('mixlab', command)))}: {error}", file=out, flush=True)
        if error.when_told is not None:
            error.when_told()
        sys.exit(USAGE_ERROR)
    except KeyboardInterrupt:
        print("\nmixlab: stopped.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception:
        sys.stderr = sys.__stderr__  # whichever rank has a defect shows it
        raise


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """A warning of the lab is for its user, without the place in the code; others have it."""
    if Path(filename).is_relative_to(Path(__file__).parents[1]):
        text = f"mixlab: {message}.\n"
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
    (file or sys.stderr).write(text)


def _refuse_many_processes() -> None:
    """Commands that train share the work; in all others processes are in each other's way."""
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    if n_processes() > 1 and command in {c.name for c in app.registered_commands} - SHARED:
        raise LabError(
            f"{n_processes()} processes: expected one. Leave torchrun out, which is for "
            f"{', '.join(sorted(SHARED))}."
        )


if __name__ == "__main__":
    main()
