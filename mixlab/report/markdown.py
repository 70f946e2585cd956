"""report.md: what a run was, what came out, and how to do it again; for a run in any state."""

import math
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mixlab.core import units
from mixlab.core.config import flatten
from mixlab.core.run_dir import RunDir
from mixlab.report.answers_section import answers_section
from mixlab.report.experts_section import experts_section
from mixlab.report.kernels import kernels_text
from mixlab.report.looped import looped_section
from mixlab.report.markup import code, fenced, plain, table
from mixlab.report.material import Facts, Material, at, number
from mixlab.report.refinement_section import (
    is_refinement,
    refinement_results,
    refinement_section,
    refinement_verdict,
)
from mixlab.report.series import column


def write_report(run: RunDir) -> Path:
    """Write report.md from what the run folder holds.

    A run that was interrupted, or that lacks a file, gets a report that says so. The picture is
    linked when it is there; draw it first.
    """
    material = Material(run)
    sections = [
        _opening(material),
        _results(material),
        _curves(material),
        answers_section(material),
        looped_section(material),
        experts_section(material),
        refinement_section(material),
        _samples(material),
        _model(material),
        data_section(material),
        training_section(material),
        _again(material),
        _notes(material),
    ]
    return run.write_text("report.md", "\n\n".join(s for s in sections if s) + "\n")


# --- sections -----------------------------------------------------------------------------------


def _opening(m: Material) -> str:
    lines = [f"# Run {code(m.run.name)}"]
    if m.config.get("about"):
        lines.append(plain(m.config["about"]))
    warning = _unfinished(m)
    if warning:
        lines.append(f"> **{warning}**")
    n_params, n_bytes = m.summary.get("n_params"), m.data.get("read", {}).get("bytes")
    what = "A model" if n_params is None else f"A model with {units.count(n_params)} parameters"
    corpus = m.data.get("corpus", {}).get("kind") or at(m.config, "data.corpus.kind")
    text = f"{what} was trained on the corpus {code(str(corpus))}" if corpus else what
    if n_bytes:
        text += f" ({_mb(n_bytes)} MB of text)"
    text += (
        f" for {units.count(m.total('steps', 'step'))} steps,"
        f" {units.count(m.total('tokens', 'tokens'))} tokens,"
        f" in {units.duration(m.total('train_s', 'elapsed_s'))}."
    )
    lines.append(f"{text} {_verdict(m)}".rstrip())
    return "\n\n".join(lines)


def _besides(summary: Mapping[str, Any]) -> str:
    """What evaluations and saves took of the training time."""
    total = summary.get("train_s")
    if not total or "eval_s" not in summary:
        return ""
    evals, saves = (100 * summary[key] / total for key in ("eval_s", "save_s"))
    return f"{evals:.1f} % for evaluations, {saves:.1f} % for saves"


def _seconds(value: float | None) -> str:
    return "" if value is None else units.duration(value)


def _unfinished(m: Material) -> str:
    status = m.summary.get("status")
    if status in ("finished", "stopped early"):
        return ""
    way_out = f"Go on with {code(f'mixlab train --resume {shlex.quote(str(m.run.path))}')}."
    if status == "failed":
        return f"This run failed: {plain(str(m.summary.get('error', 'no reason was recorded')))}"
    if status is None:
        return (
            "This run has no summary: it is still training, or it was killed. "
            f"What follows is what it had logged. {way_out}"
        )
    planned = m.summary.get("planned_steps")
    reached = f" at step {units.count(m.total('steps', 'step'))}"
    reached += f" of {planned:,}" if planned else ""
    return f"This run is {plain(str(status))}{reached}. {way_out}"


def _verdict(m: Material) -> str:
    """One sentence that holds the best loss against a model that ignores the context."""
    loss, unigram = number(m.eval_row("best").get("loss_nats")), _unigram(m)
    if loss is None:
        return "It was never evaluated."
    if is_refinement(m):
        return refinement_verdict(m)
    if unigram is None:
        return f"Its best validation loss is {loss:.3f} nats per token."
    if loss < unigram:
        return (
            f"Its best validation loss is {loss:.3f} nats per token, {unigram - loss:.3f} below "
            f"the unigram entropy ({unigram:.3f}): it has learnt to use the text before a token."
        )
    return (
        f"Its best validation loss is {loss:.3f} nats per token, not below the unigram entropy "
        f"({unigram:.3f}): counting how often each token occurs does as well."
    )


def _results(m: Material) -> str:
    if is_refinement(m):
        return refinement_results(m)
    final, best, test = m.eval_row("final"), m.eval_row("best"), m.eval_row("test")
    if not (final or best or test):
        return "## Results\n\nNo evaluation was recorded."
    columns: list[tuple[str, Facts]] = []
    named = [("last", final), ("best", best), ("test text", test)]
    if final == best:
        named[:2] = [("last and best", final)]
    for name, row in named:
        if row:
            step = row.get("step")
            columns.append((name if step is None else f"{name} (step {step:,})", row))
    columns += [
        (name, _trivial(number(m.context.get(key)), m))
        for name, key in (
            ("unigram entropy", "unigram_entropy_nats"),
            ("uniform guess, ln V", "ln_vocab_nats"),
        )
        if number(m.context.get(key)) is not None
    ]
    forms: list[tuple[str, str, Callable[[float], str]]] = [
        ("loss, nats per token", "loss_nats", "{:.3f}".format),
        ("bits per byte", "bits_per_byte", "{:.3f}".format),
        ("perplexity", "perplexity", units.three_digits),
        ("accuracy", "accuracy", units.percent),
    ]
    rows = [
        [label, *("" if (v := number(row.get(key))) is None else form(v) for _, row in columns)]
        for label, key, form in forms
    ]
    n_tokens = final.get("n_tokens") or best.get("n_tokens")
    where_from = f"{units.count(n_tokens)} tokens of " if n_tokens else ""
    averaged = ", with averaged weights (EMA)" if final.get("weights") == "ema" else ""
    return "\n\n".join(
        [
            "## Results",
            f"Measured on {where_from}validation text that was never trained on{averaged}.",
            table(["", *(name for name, _ in columns)], rows, numbers=True),
            "Lower is better, except for accuracy. Loss is the mean surprise at the next token; "
            "perplexity is e to that power. Bits per byte is the same loss per byte of text, so "
            "it can be compared between tokenizers. Accuracy is how often the likeliest token is "
            "the right one. The uniform guess is what an untrained model gets, and the unigram "
            "entropy what counting tokens gets.",
        ]
    )


def _curves(m: Material) -> str:
    picture = m.run.curves_path
    if not picture.is_file():
        return "## Curves\n\nNo picture was drawn."
    return f"## Curves\n\n![Training curves]({picture.relative_to(m.run.path).as_posix()})"


def _samples(m: Material) -> str:
    if is_refinement(m):
        return ""  # its film is the sample
    if not m.samples:
        return "## Samples\n\nNo sample was written; they come when a run ends."
    parts = ["## Samples", "Text that the model wrote, as it came."]
    for index, row in enumerate(m.samples, start=1):
        prompt, text = str(row.get("prompt", "")), str(row.get("text", ""))
        settings = [f"step {row['step']}"] if row.get("step") is not None else []
        for name, value in flatten(row.get("settings") or {}):
            if name and value is not None:
                settings.append(f"{name} {value}")
        parts.append(f"**Sample {index}** ({plain(', '.join(settings))})" if settings else "")
        if prompt:
            parts.append(f"The prompt:\n\n{fenced(prompt, 'text')}\n\nThe model went on:")
        parts.append(fenced(text, "text"))
    return "\n\n".join(part for part in parts if part)


def _model(m: Material) -> str:
    model = m.config.get("model")
    if not isinstance(model, Mapping):
        return "## Model\n\nThe config could not be read."
    names = {
        "n_params": "parameters",
        "n_active_params": "active per token",
        "n_embedding_params": "of these in the embedding",
    }
    sizes = [
        f"{units.count(m.summary[key])} {label}"
        for key, label in names.items()
        if number(m.summary.get(key)) is not None
        # Without experts every parameter is active, which goes without saying.
        and not (key == "n_active_params" and m.summary[key] == m.summary.get("n_params"))
    ]
    single = {k: v for k, v in model.items() if k not in ("blocks",)}
    blocks = [
        [code(str(name)), _settings(block, "sequence_mixer"), _settings(block, "channel_mixer")]
        for name, block in (model.get("blocks") or {}).items()
        if isinstance(block, Mapping)
    ]
    return "\n\n".join(
        part
        for part in [
            "## Model",
            ", ".join(sizes) + "." if sizes else "",
            table(["setting", "value"], [[code(k), _value(v)] for k, v in flatten(single)]),
            table(["block", "sequence mixer", "channel mixer"], blocks) if blocks else "",
        ]
        if part
    )


def data_section(m: Material) -> str:
    """Which text, how it was split, and what the splits share."""
    data = m.data
    if not data:
        return "## Data\n\nNo data manifest was written."
    parts = ["## Data"]
    read, dropped = data.get("read") or {}, data.get("duplicates_dropped") or {}
    facts = []
    if read:
        facts.append(f"{_whole(read.get('documents'))} documents, {_mb(read.get('bytes'))} MB")
        facts.append(f"{_whole(dropped.get('documents'))} exact duplicates dropped")
    tokenizer = data.get("tokenizer") or {}
    if tokenizer.get("vocab_size"):
        kind = (tokenizer.get("config") or {}).get("kind", "tokenizer")
        facts.append(f"{plain(str(kind))} with {tokenizer['vocab_size']:,} tokens")
    if facts:
        parts.append("; ".join(facts) + ".")
    overlap = data.get("overlap") or {}
    rows = []
    for name, split in (data.get("splits") or {}).items():
        shared = (overlap.get(name) or {}).get("used")
        rows.append(
            [
                name,
                _whole(split.get("documents")),
                _mb(split.get("bytes")),
                units.count(split.get("tokens")),
                "" if shared is None else units.percent(shared),
            ]
        )
    if rows:
        header = [
            "split",
            "documents",
            "MB",
            "tokens",
            "questions also in train"
            if overlap.get("of") == "questions"
            else f"{overlap.get('n_words', 13)}-grams also in train",
        ]
        parts.append(table(header, rows, numbers=True))
        parts.append(
            "Documents were assigned to splits whole, before anything was cut or tokenised."
        )
    parts += [
        f"Skipped: {_whole(entry.get('count'))} x {plain(str(reason))}, "
        f"first {', '.join(code(str(name)) for name in entry.get('first') or [])}."
        for reason, entry in (data.get("skipped") or {}).items()
    ]
    return "\n\n".join(parts)


def training_section(m: Material) -> str:
    """How long, with what, on what, from which seed."""
    rates = column(m.metrics, "tokens_per_s")
    rates = sorted(rates[np.isfinite(rates)])
    accelerator, cpu = m.environment.get("accelerator") or {}, m.environment.get("cpu") or {}
    device = accelerator.get("device_name") or cpu.get("model")
    cores = cpu.get("n_usable_cores")
    if device and accelerator.get("device", "cpu") == "cpu" and cores:
        device = f"{device}, {cores} cores"
    n_flops = m.total("flops", "flops")
    rows = [
        ("steps", units.count(m.total("steps", "step"))),
        ("tokens", units.count(m.total("tokens", "tokens"))),
        ("FLOPs", units.flops(n_flops)),
        ("time", units.duration(m.total("train_s", "elapsed_s"))),
        ("of it besides updates", _besides(m.summary)),
        ("until the first step", _seconds(m.summary.get("first_step_s"))),
        ("speed", f"{units.count(rates[len(rates) // 2])} tokens/s (median)" if rates else ""),
        ("hardware", plain(str(device)) if device else ""),
        (
            "memory",
            units.size(m.environment["memory_bytes"]) if m.environment.get("memory_bytes") else "",
        ),
        ("batch", _batch(m.config)),
        ("optimizer", _settings(m.config.get("train"), "optimizer")),
        ("schedule", _settings(m.config.get("train"), "schedule")),
        ("precision", plain(str(at(m.config, "train.precision") or ""))),
        ("kernels", kernels_text(m.kernels)),
        ("seed", plain(str(m.config.get("seed", "")))),
    ]
    return f"## Training\n\n{table(['', ''], [r for r in rows if r[1] not in ('', units.ABSENT)])}"


def _again(m: Material) -> str:
    command = m.environment.get("command")
    parts = ["## Do it again"]
    if command:
        parts.append(f"The command that started it:\n\n{fenced(command, 'sh')}")
    parent = m.summary.get("parent")
    is_tuned = isinstance(parent, Mapping) and parent.get("how") == "sft"
    if not is_tuned:  # of weights that were tuned, the config knows nothing
        parts.append(
            "The same run from its saved config, whatever the recipe has become:\n\n"
            + fenced(f"mixlab train {shlex.quote(str(m.run.config_path))}", "sh")
        )
    if isinstance(parent, Mapping):
        what = "tunes the weights of" if is_tuned else "continues"
        where = f"{code(str(parent.get('run')))} from step {parent.get('step', '?')}"
        parts.append(f"It {what} {where}.")
    if len(m.sittings) > 1:
        steps = ", ".join(str(row.get("from_step", "?")) for row in m.sittings[1:])
        parts.append(f"It was interrupted and resumed: from step {steps}.")
    git = m.environment.get("git") or {}
    versions = dict(m.environment.get("packages") or {})
    if m.environment.get("python"):
        versions = {"python": m.environment["python"], **versions}
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    facts = [
        ("started", m.environment.get("started_utc")),
        ("system", m.environment.get("platform")),
        ("versions", listed),
        (
            "commit",
            git.get("commit") and git["commit"] + (" (changed)" if git.get("is_dirty") else ""),
        ),
    ]
    rows = [[name, plain(str(value))] for name, value in facts if value]
    if rows:
        parts.append(table(["", ""], rows))
    return "\n\n".join(parts)


def _notes(m: Material) -> str:
    notes = [str(note) for note in m.summary.get("notes") or []]
    notes += [f"Not in this report: {problem}" for problem in m.problems]
    notes.append(
        f"One run with one seed ({m.config.get('seed', 'unknown')}). Another seed gives somewhat "
        "different figures, so a small difference between two single runs means nothing."
    )
    return "## Notes\n\n" + "\n".join(f"- {plain(note)}" for note in notes)


# --- values -------------------------------------------------------------------------------------


def _unigram(m: Material) -> float | None:
    return number(m.context.get("unigram_entropy_nats"))


def _trivial(nats: float | None, m: Material) -> Facts:
    """The figures of a model whose loss is known to be `nats`."""
    if nats is None:
        return {}
    row = {"loss_nats": nats, "perplexity": math.exp(nats)}
    n_bytes = number(m.context.get("bytes_per_target"))
    return {**row, "bits_per_byte": nats / math.log(2) / n_bytes} if n_bytes else row


def _settings(tree: Any, name: str) -> str:
    """`kind` and the settings that say something: what is absent or switched off is left out."""
    node = at(tree, name)
    if not isinstance(node, Mapping):
        return ""
    said = [
        f"{key} {value}"
        for key, value in flatten(node)
        if key != "kind" and value is not None and value is not False and value != []
    ]
    kind = code(str(node.get("kind", "?")))
    return f"{kind}: {plain(', '.join(said))}" if said else kind


def _value(value: Any) -> str:
    return "(absent)" if value is None else code(str(value))


def _batch(config: Facts) -> str:
    n, length = at(config, "train.batch_size"), at(config, "data.seq_len")
    if not (isinstance(n, int) and isinstance(length, int)):
        return ""
    return f"{n:,} sequences of {length:,} tokens ({units.count(n * length)} tokens per step)"


def _whole(n: Any) -> str:
    return units.ABSENT if number(n) is None else f"{n:,}"


def _mb(n_bytes: Any) -> str:
    return units.ABSENT if number(n_bytes) is None else f"{n_bytes / 1e6:,.2f}"
