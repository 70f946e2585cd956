"""What `mixlab compare` prints: tables, differences, controls, verdicts; from the summary alone."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mixlab.core import units

Row = Mapping[str, Any]
WIDTH = 100


def comparison_text(summary: Row) -> str:
    """The whole of it, as plain text."""
    parts = [
        _opening(summary),
        _table(_COST_COLUMNS, [_cost_cells(arm) for arm in summary["arms"]]),
        _result_table(summary),
        _context(summary),
        *(f"Note: {label}" for label in summary["labels"]),
        _differences(summary),
        *(_controls(entry, summary) for entry in summary["controls"]),
        _noise(summary),
    ]
    return "\n\n".join(part for part in parts if part)


# --- figures ------------------------------------------------------------------------------------


def _opening(s: Row) -> str:
    n_arms = sum(arm["role"] == "arm" for arm in s["arms"])
    n_controls = len(s["arms"]) - n_arms
    what = f"{n_arms} arm{_s(n_arms)}"
    what += f" and {n_controls} control{_s(n_controls)}" if n_controls else ""
    seeds = ", ".join(map(str, s["seeds"]))
    data = s["data"]
    text = f"{what}, seed{_s(len(s['seeds']))} {seeds}, on {data['corpus']}"
    if data["tokenizer"]:
        text += f" ({data['tokenizer']}, {data['vocab_size']:,} entries)"
    text = f"{text}. The baseline is {s['baseline']}."
    if s["same_sequences_per_seed"]:
        text += "\nArms of one seed saw the same sequences in the same order."
    elif s["same_sequences_per_seed"] is False:
        text += "\nArms of one seed did NOT see the same sequences: pairing takes out less noise."
    return text


_COST_COLUMNS = (
    "arm", "parameters", "active", "memory", "state", "tokens", "FLOPs", "seconds", "tokens/s",
)  # fmt: skip


def _cost_cells(arm: Row) -> list[str]:
    memory = units.size(arm["memory_bytes"])
    if arm["memory_bytes"] is not None and not arm["memory_is_measured"]:
        memory = f"~{memory}"
    return [
        arm["name"], units.count(arm["n_params"]), units.count(arm["n_active_params"]), memory,
        units.size(arm["state_bytes"]), units.count(arm["tokens"]), _flops(arm["flops"]),
        units.three_digits(arm["seconds"]), units.count(arm["tokens_per_s"]),
    ]  # fmt: skip


def _result_table(s: Row) -> str:
    metric, rows = s["metric"], []
    is_share = not metric["lower_is_better"]
    for arm in s["arms"]:
        by_seed = {run["seed"]: run["value"] for run in arm["runs"]}
        seeds = [_value(by_seed.get(seed), is_share) for seed in s["seeds"]]
        interval = "n/a (one seed)" if arm["low"] is None else _interval(arm, is_share)
        rows.append([arm["name"], *seeds, _value(arm["mean"], is_share), interval, arm["letters"]])
    name = "Validation puzzles solved" if is_share else "Validation loss"
    n = s["data"]["n_validation"]
    on = f", on {units.count(n)} {'puzzles' if is_share else 'tokens'}" if n else ""
    unit = "" if is_share else f", {metric['unit']}"
    head = f"{name} at the end{unit}{on}; 95 % t interval; arms without a common letter differ:"
    columns = ["arm", *(f"seed {seed}" for seed in s["seeds"]), "mean", "interval", "group"]
    return f"{head}\n{_table(columns, rows)}"


def _context(s: Row) -> str:
    if s["metric"]["name"] != "loss_nats":
        return ""
    known = s["context"]
    parts = []
    if known.get("ln_vocab_nats") is not None:
        parts.append(f"guessing evenly (ln V) {known['ln_vocab_nats']:.4f}")
    if known.get("unigram_entropy_nats") is not None:
        parts.append(f"unigram entropy {known['unigram_entropy_nats']:.4f}")
    return f"Beside it: {', '.join(parts)} nats per token." if parts else ""


# --- differences --------------------------------------------------------------------------------


def _differences(s: Row) -> str:
    if not s["against_baseline"]:
        return ""
    lines = [
        f"Against {s['baseline']}, paired by seed (negative: lower loss); reduction is the share "
        "of its loss that is gone:"
        if s["metric"]["lower_is_better"]
        else f"Against {s['baseline']}, paired by seed, in points:"
    ]
    rows = [[row["arm"], *_difference_cells(row, s["metric"])] for row in s["against_baseline"]]
    lines.append(_table(["arm", *_difference_columns(s["metric"])], rows))
    lines += ["", *(_verdict(row, s) for row in s["against_baseline"])]
    return "\n".join(lines)


def _difference_columns(metric: Row) -> list[str]:
    if not metric["lower_is_better"]:
        return ["difference", "95 % interval", "p (Holm)"]
    if metric["name"] == "bits_per_byte":
        return ["bits/byte", "95 % interval", "reduction", "p (Holm)"]
    return ["nats", "95 % interval", "bits/byte", "reduction", "p (Holm)"]


def _difference_cells(row: Row, metric: Row) -> list[str]:
    d, p = row["difference"], row["p_holm"]
    p_text = "n/a" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
    if not metric["lower_is_better"]:
        return [_points(d["mean"]), _span(d, 100, "{:+.2f}"), p_text]
    effect = row["effect"]
    reduction = effect["reduction_percent"]
    cells = [f"{d['mean']:+.4f}", _span(d, 1, "{:+.4f}")]
    if metric["name"] == "loss_nats":
        bits = effect["bits_per_byte"]
        cells.append("n/a" if bits is None else f"{bits:+.4f}")
    return [*cells, "n/a" if reduction is None else f"{reduction:+.2f} %", p_text]


def _verdict(row: Row, s: Row) -> str:
    """Who is better, only where that is shown."""
    arm, base, metric = row["arm"], row["baseline"], s["metric"]
    if not row["tokens_are_equal"]:
        return f"Verdict: none between {arm} and {base}, which saw unequal amounts of text."
    if row["verdict"] == "undecided":
        return f"Verdict: undecided between {arm} and {base}: {_why_undecided(row, metric)}"
    return f"Verdict: {arm} is {row['verdict']} than {base}: {_evidence(row, metric)}."


def _evidence(row: Row, metric: Row) -> str:
    d = row["difference"]
    amount = _amount(d["mean"], metric)
    span = _span(d, 1 if metric["lower_is_better"] else 100, "{:+.4f}" if metric["lower_is_better"]
                 else "{:+.2f}")  # fmt: skip
    text = f"{amount} ({span})"
    if metric["lower_is_better"]:
        text += f", reduction {row['effect']['reduction_percent']:+.2f} %"
    n_pairs = row["n_pairs"]
    corrected = f" corrected for {n_pairs} pairs" if n_pairs > 1 else ""
    p = row["p_holm"]
    return f"{text}; {d['n']} seeds, p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}{corrected}"


def _why_undecided(row: Row, metric: Row) -> str:
    d = row["difference"]
    amount = _amount(d["mean"], metric)
    if d["low"] is None:
        return f"{amount} from one seed; the same again with another seed could differ as much."
    needed = row["seeds_needed"]
    more = (
        "no number of seeds up to 1,000 would show a difference that small"
        if needed is None
        else f"would need about {max(needed, d['n'] + 1)} seeds, if it is what it seems"
    )
    excludes = d["low"] > 0 or d["high"] < 0
    why = f" excludes zero, but not after correction for {row['n_pairs']} pairs" if excludes else ""
    digits = "{:+.4f}" if metric["lower_is_better"] else "{:+.2f}"
    span = _span(d, 1 if metric["lower_is_better"] else 100, digits)
    return f"{amount} ({span}{why}); {more}."


# --- controls -----------------------------------------------------------------------------------


def _controls(entry: Row, s: Row) -> str:
    """What the recursion of one arm is worth, question by question."""
    of, metric = entry["of"], s["metric"]
    lines = [f"Controls of {of}:"]
    for row in entry["rows"]:
        lines.append(f"  {row['title']}")
        if row["status"] == "does not apply":
            lines.append(f"    does not apply: {row['reason']}")
        elif row["status"] == "missing":
            lines.append(f"    MISSING. Make it with: {row['command']}")
        else:
            lines.append(f"    {row['arm']}: {_matched(row)}")
            lines.append(f"    {_control_verdict(row, of, metric)}")
    return "\n".join(lines)


def _matched(row: Row) -> str:
    if row["ratio"] is None:
        return f"{row['matched']} not measured"
    show = {"parameters": "{:,.0f}".format, "FLOPs": _flops}.get(row["matched"], units.three_digits)
    off = 100 * (row["ratio"] - 1)
    within = "within 1 %" if row["is_within"] else "NOT within 1 %"
    return f"{row['matched']} {show(row['got'])} for {show(row['wanted'])} ({off:+.2f} %, {within})"


def _control_verdict(row: Row, of: str, metric: Row) -> str:
    if row["verdict"] == "undecided":
        return f"{of} against it: undecided, {_why_undecided(row, metric)}"
    return f"{of} is {row['verdict']}: {_evidence(row, metric)}."


def _noise(s: Row) -> str:
    noise, metric = s["noise"], s["metric"]
    base = noise["baseline"]
    if base["sd"] is None:
        return (
            "Noise: unknown from one seed, so no difference here is evidence. Add seeds: "
            "--seeds 3 or more."
        )
    scale, unit = (1, metric["unit"]) if metric["lower_is_better"] else (100, "points")
    text = (
        f"Noise: {base['n']} runs of {s['baseline']} have a standard deviation of "
        f"{scale * base['sd']:.4f} {unit} ({scale * base['sd_low']:.4f} to "
        f"{scale * base['sd_high']:.4f})."
    )
    least = noise["smallest_detectable"]
    if least is not None:
        pairs = f", corrected for {noise['n_pairs']} pairs" if noise["n_pairs"] > 1 else ""
        text += (
            f" {base['n']} seeds find a difference of {scale * least:.4f} {unit} with a chance of "
            f"{100 * noise['power']:.0f} %{pairs}."
        )
    return text


# --- forms --------------------------------------------------------------------------------------


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, figures to the right, the last to the left."""
    cells = [list(columns), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    last = len(columns) - 1
    lines = []
    for row in cells:
        parts = [
            cell.ljust(width) if i == 0 or (i == last and columns[last] == "group")
            else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]  # fmt: skip
        lines.append("  " + "  ".join(parts).rstrip())
    return "\n".join(lines)


def _flops(value: float) -> str:
    """Three digits, since one percent is to be seen."""
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def _value(value: float | None, is_share: bool) -> str:
    if value is None:
        return "n/a"
    return units.percent(value) if is_share else f"{value:.4f}"


def _interval(arm: Row, is_share: bool) -> str:
    return f"{_value(arm['low'], is_share)} to {_value(arm['high'], is_share)}"


def _span(d: Row, scale: float, form: str) -> str:
    if d["low"] is None:
        return "n/a"
    return f"{form.format(scale * d['low'])} to {form.format(scale * d['high'])}"


def _amount(value: float, metric: Row) -> str:
    if not metric["lower_is_better"]:
        return f"{_points(value)} points"
    return f"{value:+.4f} {'bits per byte' if metric['name'] == 'bits_per_byte' else 'nats'}"


def _points(value: float) -> str:
    return f"{100 * value:+.2f}"


def _s(n: int) -> str:
    return "" if n == 1 else "s"
