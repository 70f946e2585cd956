"""The last words of a training command: how it went, what it wrote, what to try next."""

from typing import TYPE_CHECKING, Any

from mixlab.core import units

if TYPE_CHECKING:
    from mixlab.jobs.train import RunResult

SAMPLE_CHARS = 600


def closing_text(result: "RunResult") -> str:
    """What to print when a sitting has ended."""
    run, summary = result.run, result.summary
    if result.status == "interrupted":
        return (
            f"Stopped after step {summary['steps']} of {summary['planned_steps']}; everything is "
            f"saved.\nGo on with: mixlab train --resume {run.path}"
        )
    if "refinement" in summary:
        return _refinement(result)
    lines = [_figures(summary), f"Curves: {run.curves_path}", f"Report: {run.report_path}"]
    for row in run.read_jsonl("samples.jsonl")[:1]:
        text = (row["prompt"] + row["text"])[:SAMPLE_CHARS]
        quoted = "\n".join(f"  | {line}" for line in text.splitlines())
        lines += ["", f"A sample, continuing {row['prompt']!r}:", quoted]
    lines += [
        "",
        "Next:",
        f'  mixlab generate {run.path} --prompt "import "',
        f"  mixlab extend {run.path} --steps {2 * summary['steps']}",
        "  mixlab list recipes",
    ]
    return "\n".join(lines)


def _refinement(result: "RunResult") -> str:
    run, summary = result.run, result.summary
    test, eager = summary["test"], summary["refinement"].get("early_exit")
    lines = [
        f"Trained {units.count(summary['n_params'])} parameters in "
        f"{units.duration(summary['train_s'])}.",
        f"Test puzzles: {units.percent(test['exact_accuracy'])} solved after "
        f"{test['reasoning_steps']:g} segments each.",
    ]
    if eager is not None:
        lines.append(
            f"With early exit: {units.percent(eager['exact_accuracy'])} after "
            f"{eager['reasoning_steps']:.2f} segments on average."
        )
    pictures = ", ".join(str(path) for path in sorted(run.plots_path.glob("*.png")))
    lines += [
        f"Pictures: {pictures}",
        f"Report: {run.report_path}",
        "",
        "Next:",
        f"  mixlab extend {run.path} --steps {2 * summary['steps']}",
        "  mixlab list recipes",
    ]
    return "\n".join(lines)


def _figures(summary: dict[str, Any]) -> str:
    final, context = summary["final"], summary["context"]
    how = "" if summary["status"] == "finished" else " (stopped early)"
    return (
        f"Trained {units.count(summary['n_params'])} parameters on "
        f"{units.count(summary['tokens'])} tokens in {units.duration(summary['train_s'])}{how}.\n"
        f"Validation loss {final['loss_nats']:.4f} nats per token"
        f" ({final['bits_per_byte']:.3f} bits per byte), accuracy"
        f" {units.percent(final['accuracy'])}, perplexity"
        f" {units.three_digits(final['perplexity'])};\n"
        f"beside it: unigram entropy {context['unigram_entropy_nats']:.4f}, uniform guessing"
        f" {context['ln_vocab_nats']:.4f}."
    )
