"""What a sitting leaves behind: test figures, samples, summary, pictures and the report."""

from collections.abc import Callable
from typing import Any

import torch

from mixlab.core.run_dir import RunDir
from mixlab.infer.generate import generate_tokens
from mixlab.infer.sampler import SamplingConfig
from mixlab.jobs.answers import has_examples, sample_answers, write_answers
from mixlab.jobs.experts import has_experts, write_expert_choice
from mixlab.jobs.looped import depth_figures, is_looped
from mixlab.jobs.memory import peak_memory_bytes
from mixlab.jobs.screen import Screen
from mixlab.jobs.session import Session
from mixlab.report.experts import write_experts_picture
from mixlab.report.looped import write_depth_picture
from mixlab.report.markdown import write_report
from mixlab.report.plots import write_training_curves
from mixlab.report.refinement import write_refinement_pictures
from mixlab.training.loop import Outcome

PROMPT_CHARS = 48
"""Characters of a validation document that start a sample when no prompt is given."""


def finish(
    run: RunDir,
    session: Session,
    outcome: Outcome,
    command: str,
    screen: Screen,
    *,
    conclude: Callable[[RunDir, Any, int, Screen], dict[str, Any]],
    first_step_s: float | None = None,
) -> dict[str, Any]:
    """Write summary.json, plots/, and, at the end of the run, report.md and what `conclude` adds.

    `conclude` measures what is measured once, at the end; what it returns goes into the summary.
    `first_step_s` is how long the last sitting took to its first update, where that is known.
    """
    progress = outcome.progress
    is_over = outcome.status != "interrupted"
    evals = run.read_jsonl("evals.jsonl")
    validation = [row for row in evals if row["split"] == "validation"]
    best = next((row for row in validation if row["step"] == progress.best_step), None)
    summary: dict[str, Any] = {
        "status": outcome.status,
        **facts(session, command),
        "steps": progress.step,
        "tokens": progress.tokens,
        "flops": session.n_computed(progress) * session.budget.train_flops_per_token,
        "train_s": progress.elapsed_s,
        "eval_s": progress.eval_s,
        "save_s": progress.save_s,
        "first_step_s": first_step_s,
        "peak_memory_bytes": peak_memory_bytes(session.hardware.device),
        "final": validation[-1] if validation else None,
        "best": best,
    }
    parent = run.read_json("parent.json")
    if parent is not None:
        summary["parent"] = {"run": parent["path"], "step": parent["step"]}
        if "how" in parent:
            summary["parent"]["how"] = parent["how"]
    if is_over:
        summary.update(conclude(run, session, progress.step, screen))
    run.write_json("summary.json", summary)
    write_training_curves(run)
    write_experts_picture(run)
    write_depth_picture(run)
    write_refinement_pictures(run)
    write_report(run)
    return summary


def conclude(run: RunDir, session: Session, step: int, screen: Screen) -> dict[str, Any]:
    """The last words of a language model: test figures, samples, the experts' choice."""
    # Samples and figures have forms of their own, for which compiling takes longer than running.
    with torch.compiler.set_stance("force_eager"):
        return _conclusion(run, session, step, screen)


def _conclusion(run: RunDir, session: Session, step: int, screen: Screen) -> dict[str, Any]:
    with screen.task("Measuring the test split", None):
        found: dict[str, Any] = {"test": session.evaluate("test")}
    if is_looped(session):  # first, as it chooses when tokens leave
        found["depth"] = depth_figures(session, screen)
    with screen.task("Writing samples", None):
        _write_samples(run, session, step)
    if has_experts(session):
        with screen.task("Asking the experts which tokens they take", None):
            write_expert_choice(run, session, step)
    if has_examples(session):
        found["answers"] = write_answers(run, session, screen)
    return found


def facts(session: Session, command: str) -> dict[str, Any]:
    """What a summary says of a run however it ends."""
    return {
        "planned_steps": int(session.config.train.length.amount),
        "n_params": session.budget.n_params,
        "n_active_params": session.budget.n_active_params,
        "n_embedding_params": session.budget.n_embedding_params,
        "flops_per_token": session.budget.train_flops_per_token,
        "context": session.context,
        "device": session.hardware.device.type,
        "precision": session.hardware.precision,
        "command": command,
        "notes": list(session.notes),
    }


def finish_failed(run: RunDir, session: Session, error: str, command: str) -> None:
    """Write summary.json, plots/ and report.md of a run that cannot go on."""
    run.write_json("summary.json", {"status": "failed", "error": error, **facts(session, command)})
    write_training_curves(run)
    write_experts_picture(run)
    write_refinement_pictures(run)
    write_report(run)


def _write_samples(run: RunDir, session: Session, step: int) -> None:
    """Continue the prompts with the weights that are evaluated; replaces earlier samples."""
    if session.ema is not None:
        with session.ema.applied():
            rows = _samples(session, step)
    else:
        rows = _samples(session, step)
    run.truncate_jsonl("samples.jsonl", 0)
    for row in rows:
        run.append("samples.jsonl", row)


def _samples(session: Session, step: int) -> list[dict[str, Any]]:
    cfg, tokenizer = session.config.sample, session.data.tokenizer
    if has_examples(session):
        return sample_answers(session, cfg.prompts or _beginnings(session), step)
    sampling = SamplingConfig(temperature=cfg.temperature, top_k=cfg.top_k)
    rows = []
    prompts = (cfg.prompts or _beginnings(session))[: cfg.n]
    for i, prompt in enumerate(prompts):
        ids = tokenizer.encode(prompt)
        room = session.config.model.max_seq_len - len(ids)
        if room < 1:
            continue  # a prompt of the config is refused when the run is opened
        tokens = generate_tokens(
            session.model,
            ids,
            max_new_tokens=min(cfg.max_new_tokens, room),
            sampling=sampling,
            seed=session.config.seed + i,
            eos_id=tokenizer.eos_id,
            n_known_tokens=tokenizer.vocab_size,
        )
        text = tokenizer.decode(list(tokens))
        settings = {
            "temperature": cfg.temperature,
            "top_k": cfg.top_k,
            "seed": session.config.seed + i,
        }
        rows.append({"prompt": prompt, "text": text, "step": step, "settings": settings})
    return rows


def _beginnings(session: Session) -> list[str]:
    """The first words of validation documents: text that the model has not been trained on."""
    shards = session.data.split("validation")
    if has_examples(session):
        return [question for _, question, _ in shards.asked()[: session.config.sample.n]]
    n_tokens = min(24, -(-session.config.model.max_seq_len // 2))  # leaves room for an answer
    prompts = []
    for start in shards.starts[: 4 * session.config.sample.n]:
        text = session.data.tokenizer.decode(shards.tokens[start : start + n_tokens].tolist())
        text = text.rstrip("\ufffd")  # a character that was cut in two
        words = text[:PROMPT_CHARS].rsplit(" ", 1)[0] if len(text) > PROMPT_CHARS else text
        if words.strip():
            prompts.append(words)
    return prompts
