"""The tables of `gpu_training.py`, and how they get into the README of the benchmarks."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from training_workloads import WORKLOADS

from mixlab.core import units

SPEEDS, FIRST_STEPS = "gpu_training", "gpu_first_step"
KINDS = (
    "matrix products", "gated delta rule", "attention", "cross-entropy", "norm", "convolution",
    "compiled elementwise", "elementwise", "copies and casts", "optimizer", "experts' sorting",
)  # fmt: skip
"""Of work, as `mixlab bench` names them, in the order of the columns."""
Found = dict[str, Any]
Row = dict[str, Any]


def speed_tables(found: Found) -> str:
    """Targets first (of a run in full size), then every contender with what it took."""
    targets = [] if found.get("tiny") else [_targets(found["rows"])]
    parts = [_made(found), *targets, _contenders(found), _kernels(found["rows"])]
    return "\n\n".join(part for part in parts if part)


def first_step_table(found: Found) -> str:
    """Seconds to the first update."""
    rows = [
        [
            row["workload"],
            row["label"],
            *(f"{row[kind]:.0f} s" if kind in row else "" for kind in ("cold_s", "warm_s")),
            row.get("error", ""),
        ]
        for row in found["rows"]
    ]
    header = ["work", "contender", "empty caches", "filled caches", "error"]
    return "\n\n".join([_made(found), _table(header, rows, right={2, 3})])


def summary(row: Row) -> dict[str, float] | None:
    """Milliseconds per update of a row, or None if it has none: a median of medians, its range."""
    medians = [statistics.median(times) for times in row["rounds_ms"] if times]
    if not medians:
        return None
    ms = statistics.median(medians)
    return {
        "ms": ms,
        "low": min(medians),
        "high": max(medians),
        "tokens_per_s": 1000 * row["tokens"] / ms,
    }


def _targets(rows: Sequence[Row]) -> str:
    lines = []
    for workload in WORKLOADS:
        speeds = {
            (row["is_ours"], row["label"]): found["tokens_per_s"]
            for row in rows
            if row["workload"] == workload.key and (found := summary(row)) is not None
        }
        ours = [speed for (is_ours, _), speed in speeds.items() if is_ours]
        peers = {label: speed for (is_ours, label), speed in speeds.items() if not is_ours}
        if not ours:
            continue
        best = max(peers, key=lambda label: peers[label], default=None)
        lines.append([
            workload.title,
            f"{_k(peers[best])} ({best})" if best else "",
            f"**{_k(max(ours))}**",
            f"{max(ours) / peers[best]:.2f} x" if best else "",
            f"{_k(workload.at_least)} / {_k(workload.aim)}",
            _verdict(max(ours), workload.at_least, workload.aim),
        ])  # fmt: skip
    header = ["work", "best peer, tokens/s", "mixlab, tokens/s", "ratio", "at least / aim", ""]
    return _table(header, lines, right={2, 3})


def _verdict(speed: float, at_least: float, aim: float) -> str:
    if speed >= aim:
        return "aim reached"
    return "reached" if speed >= at_least else f"missed: {speed / at_least:.0%}"


def _contenders(found: Found) -> str:
    lines = []
    for row in found["rows"]:
        cells = [row["workload"], row["label"]]
        times = summary(row)
        if times is None:
            lines.append([*cells, "", "", "", "", "", "", row.get("error", "not measured")])
            continue
        mfu = ""
        if "flops_per_token" in row:
            rate = row.get("matmul_flops", found["matmul_flops"])
            share = row["flops_per_token"] * times["tokens_per_s"] / rate
            mfu = f"{share:.3f}"
        peak = row.get("peak_bytes")
        lines.append([
            *cells,
            f"{row['n_params'] / 1e6:.1f}" if "n_params" in row else "",
            f"{times['ms']:.1f} ({times['low']:.1f} to {times['high']:.1f})",
            f"{times['tokens_per_s']:,.0f}",
            mfu,
            f"{peak / 2**30:.1f}" if peak else "",
            f"{row['first_update_s']:.0f}",
            row.get("error", ""),
        ])  # fmt: skip
    header = ["work", "contender", "params M", "ms per update (rounds)", "tokens/s", "MFU",
              "GiB", "first update s", "error"]  # fmt: skip
    return _table(header, lines, right={2, 3, 4, 5, 6, 7})


def _kernels(rows: Sequence[Row]) -> str:
    """Milliseconds of kernels in one update by kind of work, of every contender that has them."""
    times = [{kernel["kind"]: kernel["ms"] for kernel in row.get("kernels", ())} for row in rows]
    large = [
        kind
        for kind in KINDS
        if any(t.get(kind, 0.0) >= 0.05 * sum(t.values()) for t in times if t)
    ]
    lines = [
        [row["workload"], row["label"], f"{sum(t.values()):.1f}",
         *(f"{t.get(kind, 0.0):.1f}" for kind in large),
         f"{sum(ms for kind, ms in t.items() if kind not in large):.1f}"]
        for row, t in zip(rows, times, strict=True) if t
    ]  # fmt: skip
    header = ["work", "kernels, ms per update", "all", *large, "others"]
    return _table(header, lines, right=set(range(2, len(header))))


def _made(found: Found) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items() if v)
    device = found["device"].get("device_name") or found["device"]["device"]
    rate = units.flops(found["matmul_flops"])
    return (
        f"{found['made']}, {device}, {rate} FLOP/s in a large matrix product; "
        f"{versions}. `{found['command']}`"
    )


def _k(speed: float) -> str:
    return f"{speed / 1e6:.2f}M" if speed >= 1e6 else f"{speed / 1e3:.0f}k"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], right: set[int]) -> str:
    """Markdown; a column in which no row says anything is left out, and a table without rows."""
    rows = list(rows)
    if not rows:
        return ""
    used = [i for i in range(len(header)) if any(row[i] for row in rows)]
    lines = [[header[i] for i in used], ["---:" if i in right else "---" for i in used]]
    lines += [[row[i].replace("|", "\\|") for i in used] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_tables(readme: Path, runs: Sequence[Found]) -> None:
    """Replace what stands between the marks of every kind of run that there is one of.

    Several runs of a kind, of different workloads each, are put together.

    Raises:
        ValueError: the file has no such marks, or two runs measured the same.
    """
    page = readme.read_text()
    for kind, tables in ((SPEEDS, speed_tables), (FIRST_STEPS, first_step_table)):
        if of_kind := [run for run in runs if run["kind"] == kind]:
            page = between_marks(page, kind, tables(joined(of_kind)))
    readme.write_text(page)


def joined(runs: Sequence[Found]) -> Found:
    """Runs on the same kind of machine as one, workloads in their usual order."""
    order = [workload.key for workload in WORKLOADS]
    rows = sorted(
        ({"matmul_flops": run["matmul_flops"]} | row for run in runs for row in run["rows"]),
        key=lambda row: order.index(row["workload"]),
    )
    names = [(row["workload"], row["contender"]) for row in rows]
    if len(set(names)) < len(names):
        raise ValueError(f"measured twice: {sorted({n for n in names if names.count(n) > 1})}")
    rates = [run["matmul_flops"] for run in runs]
    commands = "`, `".join(run["command"] for run in runs)
    return runs[0] | {"rows": rows, "matmul_flops": statistics.mean(rates), "command": commands}


def between_marks(page: str, kind: str, text: str) -> str:
    """The page with `text` between `<!-- kind -->` and `<!-- end of kind -->`."""
    begin, end = f"<!-- {kind} -->", f"<!-- end of {kind} -->"
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"expected one {begin} and one {end} in the page")
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"
