"""The model card of an exported model: what a stranger must know before using its weights."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mixlab.core import units
from mixlab.core.json_files import read_json
from mixlab.core.run_dir import RunDir
from mixlab.report.markdown import data_section, training_section
from mixlab.report.markup import code, fenced, plain, table
from mixlab.report.material import Material, at, number

Facts = Mapping[str, Any]
Z_95 = 1.959964
"""Standard errors on each side of a 95 % interval of a normal estimate."""


class Exported(NamedTuple):
    """What the export knows and the run folder does not."""

    step: int
    command: str
    dtype: str
    n_params: int
    architecture: str | None  # the stock class; None for mixlab's own format
    parity: Facts | None
    engines: Sequence[tuple[str, str]]  # engine, what to expect of it
    chat: bool
    notes: Sequence[str]


def model_card(run: RunDir, exported: Exported) -> str:
    """The text of README.md in an exported folder."""
    m = Material(run)
    sections = [
        _head(m, exported),
        _use(exported),
        _model(m, exported),
        data_section(m),
        training_section(m),
        _evaluation(m, exported.step),
        _limits(m, exported),
        _exactness(exported),
        _again(m, exported),
        LICENCE,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


LICENCE = """## Licence

None has been chosen. State here under which terms others may use these weights; the licences of the
training text may bind you."""


def _head(m: Material, e: Exported) -> str:
    name = str(m.config.get("name") or m.run.name)
    library = "transformers" if e.architecture else "mixlab"
    front = f"---\nlibrary_name: {library}\npipeline_tag: text-generation\ntags: [mixlab]\n---"
    text = f"{front}\n\n# {plain(name)}\n\n"
    about = m.config.get("about")
    text += f"{plain(about)}\n\n" if about else ""
    what = f"as {code(e.architecture)}" if e.architecture else "in mixlab's own format"
    text += (
        f"A small language model of {units.count(e.n_params)} parameters, trained with mixlab and "
        f"exported {what} in {e.dtype}: the weights of step {e.step:,}."
    )
    return text


def _use(e: Exported) -> str:
    if not e.architecture:
        lines = "import mixlab\n\nprint(mixlab.open_run(FOLDER).generate('The '))"
        return f"## Use\n\n{fenced(lines, 'python')}"
    lines = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        "model = AutoModelForCausalLM.from_pretrained(FOLDER)\n"
        "tokenizer = AutoTokenizer.from_pretrained(FOLDER)"
    )
    text = f"## Use\n\n{fenced(lines, 'python')}\n\n"
    if e.chat:
        text += "It was tuned on conversations; the tokenizer holds their template."
    else:
        text += "It continues text. It was not tuned to answer questions."
    if e.engines:
        text += "\n\n" + table(
            ["engine", "expected to run it"], [list(map(plain, r)) for r in e.engines]
        )
    return text


def _model(m: Material, e: Exported) -> str:
    model = m.config.get("model") or {}
    keys = ("d_model", "n_layers", "vocab_size", "max_seq_len", "tie_embeddings")
    rows = [["parameters", f"{e.n_params:,}"]]
    active = m.summary.get("n_active_params")
    if active and active != m.summary.get("n_params"):
        rows.append(["active per token", f"{active:,}"])
    rows += [[code(key), plain(str(model[key]))] for key in keys if key in model]
    for name, block in (model.get("blocks") or {}).items():
        kinds = [str(at(block, f"{part}.kind")) for part in ("sequence_mixer", "channel_mixer")]
        rows.append([f"block {code(name)}", " + ".join(map(code, kinds))])
    if model.get("pattern"):
        rows.append([code("pattern"), code(json.dumps(model["pattern"]))])
    if model.get("recursion"):
        rows.append(["layers that run more than once", code(json.dumps(model["recursion"]))])
    return f"## Model\n\n{table(['', ''], rows)}"


def _evaluation(m: Material, step: int) -> str:
    rows = [_score_row(score) for score in _scores(m.run, step)]
    parts = ["## Evaluation"]
    if rows:
        header = ["task", "metric", "value", "95 % interval", "cases", "chance"]
        parts.append(table(header, rows, numbers=True))
    else:
        parts.append(
            f"No scores with intervals were measured at step {step:,} before the export (that is "
            f"what {code('mixlab eval')} does)."
        )
    logged = []
    for name, row in (("validation", m.eval_row("best")), ("test", m.eval_row("test"))):
        loss, bits = number(row.get("loss_nats")), number(row.get("bits_per_byte"))
        if loss is not None:
            text = f"{name} loss {loss:.4f} nats per token"
            logged.append(text + (f" ({bits:.3f} bits per byte)" if bits is not None else ""))
    unigram = number(m.context.get("unigram_entropy_nats"))
    if logged:
        text = "Logged in training, one seed, without intervals: " + "; ".join(logged)
        if unigram is not None:
            text += f"; a model that only counts tokens reaches {unigram:.4f}"
        parts.append(text + ".")
    return "\n\n".join(parts)


def _scores(run: RunDir, step: int) -> list[Facts]:
    """What `mixlab eval` has left in the run folder for this step."""
    found: list[Facts] = []
    for file in sorted((run.path / "evals").glob(f"step-{step:06d}/*.json")):
        document = read_json(file)
        scores = document.get("scores") if isinstance(document, dict) else None
        found += [score for score in scores or [] if isinstance(score, dict)]
    return found


def _score_row(score: Facts) -> list[str]:
    value, error = number(score.get("value")), number(score.get("standard_error"))
    interval = ""
    if value is not None and error is not None:
        interval = f"{value - Z_95 * error:.4g} to {value + Z_95 * error:.4g}"
    chance = number(score.get("chance"))
    cases = f"{score.get('n', '')} {score.get('cases', '')}".strip()
    return [
        plain(str(score.get("task", ""))), plain(str(score.get("metric", ""))),
        "" if value is None else f"{value:.4g}", interval, plain(cases),
        "" if chance is None else f"{chance:.4g}",
    ]  # fmt: skip


def _limits(m: Material, e: Exported) -> str:
    corpus = str(at(m.config, "data.corpus.kind") or "its corpus")
    lines = [
        f"It is small, and it knows the text of {code(corpus)} and nothing else. What it writes "
        "may be wrong, and may repeat passages of that text.",
        "It was not tested for harmful output, and nothing was done against it.",
        "All figures are of one run with one seed; another seed gives others.",
    ]
    context = at(m.config, "model.max_seq_len")
    trained = at(m.config, "data.seq_len")
    if context and trained:
        lines.append(
            f"It was trained on sequences of {trained:,} tokens; prompt and answer together may "
            f"have {context:,}, and beyond the trained length nothing was measured."
        )
    lines += [str(note) for note in e.notes]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _exactness(e: Exported) -> str:
    p = e.parity
    if p is None:
        return ""
    cached = p.get("cached_against_uncached")
    rows = [
        ["largest difference of a logit", f"{p['largest_logit_difference']:.2g}"],
        ["largest logit", f"{p['largest_logit']:.3g}"],
        ["cached against uncached", "no cached generation" if cached is None else f"{cached:.2g}"],
        ["equal greedy continuations", f"{p['greedy_equal']} of {p['greedy_prompts']}"],
    ]
    if p.get("rounding"):
        rows.append(
            ["moved by rounding to bfloat16", f"{p['rounding']['largest_logit_difference']:.2g}"]
        )
    return (
        "## Same function as the run\n\nThis folder was loaded with plain transformers "
        f"{p['transformers']} and compared with the model in mixlab, in float32 on fixed tokens:"
        f"\n\n{table(['', ''], rows)}"
    )


def _again(m: Material, e: Exported) -> str:
    parts = ["## How it was made"]
    command = m.environment.get("command")
    lines = [str(command)] if command else []
    parts.append(fenced("\n".join([*lines, e.command]), "sh"))
    again = code("mixlab train run-config.yaml")
    parts.append(f"The run's settled config lies beside this file; {again} trains it again.")
    versions = m.environment.get("packages") or {}
    if versions:
        parts.append("Versions: " + ", ".join(f"{k} {v}" for k, v in versions.items()) + ".")
    return "\n\n".join(parts)
