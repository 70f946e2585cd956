"""The last words of a training command: how it went, what it wrote, what to try next."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixlab.core import units

if TYPE_CHECKING:
    from mixlab.jobs.sitting import RunResult

SAMPLE_CHARS = 600
PROMPT_CHARS = 24
PYTHON_PROMPT = '"import "'  # as one types it


def closing_text(result: "RunResult") -> str:
    """What to print when a sitting has ended."""
    run, summary = result.run, result.summary
    if result.status == "interrupted":
        return (
            f"Stopped after step {summary['steps']} of {summary['planned_steps']}; everything is "
            f"saved.\nGo on with: mixlab train --resume {_quoted(run.path)}"
        )
    if "refinement" in summary:
        return _refinement(result)
    lines = [_figures(summary), f"Curves: {run.curves_path}", f"Report: {run.report_path}"]
    if isinstance(summary.get("depth"), dict):
        lines += _depth(summary["depth"])
    samples = run.read_jsonl("samples.jsonl")
    if "answers" in summary:
        return "\n".join([*lines, *_answers(result, samples)])
    for row in samples[:1]:
        text = (row["prompt"] + row["text"])[:SAMPLE_CHARS]
        quoted = "\n".join(f"  | {line}" for line in text.splitlines())
        lines += ["", f"A sample, continuing {row['prompt']!r}:", quoted]
    lines += [
        "",
        "Next:",
        f"  mixlab generate {_quoted(run.path)} --prompt {_prompt(result, samples)}",
        f"  mixlab extend {_quoted(run.path)} --steps {2 * summary['steps']}",
        "  mixlab list recipes",
    ]
    return "\n".join(lines)


def _quoted(path: Path) -> str:
    """A path as an argument: for the shell one word, for mixlab no option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def _prompt(result: "RunResult", samples: list[dict[str, Any]]) -> str:
    """A prompt in the manner of the run's text, for the shell: Python, or as a sample began."""
    data = result.run.read_json("data.json") or {}
    corpus = data.get("corpus", {}).get("kind", "")
    words = next((row["prompt"].split() for row in samples if row["prompt"].strip()), [])
    if not words or corpus.startswith("python"):
        return PYTHON_PROMPT
    prompt = words[0][:PROMPT_CHARS]
    for word in words[1:]:
        if len(prompt) + 1 + len(word) > PROMPT_CHARS:
            break
        prompt += f" {word}"
    if prompt.startswith("-"):  # would be taken for an option
        prompt = f" {prompt}"
    return shlex.quote(prompt)


def _depth(facts: dict[str, Any]) -> list[str]:
    """What a looped model gets from more steps, from its input, and from leaving early."""
    losses = {row["steps"]: row["loss_nats"] for row in facts["by_depth"]}
    trained = facts["trained_steps"]
    text = f"Validation loss after {trained} steps, as trained: {losses[trained]:.4f}"
    if 2 * trained in losses:
        text += f"; after twice as many: {losses[2 * trained]:.4f}"
    lines = [f"{text}."]
    use = facts.get("input_use")
    if use is not None:
        lines.append(
            f"On true inputs {use['true_nats']:.4f} nats, on the same tokens in random order "
            f"{use['random_nats']:.4f}."
        )
    test = facts.get("test")
    if test is not None:
        how = "chosen" if facts.get("is_chosen") else "configured"
        lines.append(
            f"Leaving early at the {how} threshold {facts['exit_threshold']:g}: test loss "
            f"{test['loss_nats']:.4f} after {test['mean_steps']:.2f} of {test['max_steps']} steps, "
            f"{test['full_loss_nats']:.4f} after all."
        )
    return lines


def _answers(result: "RunResult", samples: list[dict[str, Any]]) -> list[str]:
    """How a run that learned from answers does when it is asked, and how to talk to it."""
    run, found = result.run, result.summary["answers"]
    lines = []
    if found is not None:
        before = found.get("before")
        was = "" if before is None else f" ({_exact(before)} before)"
        lines.append(
            f"Held-out questions answered to the letter: {_exact(found)} of {found['n']}{was}."
        )
    for row in samples[:3]:
        answer = " ".join(row["text"][:SAMPLE_CHARS].split())
        lines += ["", f"  > {row['prompt'][:SAMPLE_CHARS]}", f"  {answer}"]
    return [
        *lines,
        "",
        "Next:",
        f"  mixlab chat {_quoted(run.path)}",
        f"  mixlab extend {_quoted(run.path)} --steps {2 * result.summary['steps']}",
    ]


def _exact(answers: dict[str, Any]) -> str:
    """Share of exact answers."""
    return units.percent(answers["exact_accuracy"])


def _refinement(result: "RunResult") -> str:
    run, summary = result.run, result.summary
    test, eager = summary["test"], summary["refinement"].get("early_exit")
    lines = [
        f"Trained {units.count(summary['n_params'])} parameters in "
        f"{units.duration(summary['train_s'])}.",
        f"Test puzzles: {units.percent(test['exact_accuracy'])} solved after "
        f"{test['eval/reasoning_steps']:g} segments each.",
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
        f"  mixlab solve {_quoted(run.path)} --steps",
        f"  mixlab check {_quoted(run.path)}",
        f"  mixlab extend {_quoted(run.path)} --steps {2 * summary['steps']}",
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
