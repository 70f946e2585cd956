"""Training speed on a GPU: mixlab beside other packages, in one run.

    python benchmarks/gpu_training.py                        # all five workloads
    python benchmarks/gpu_training.py --only hybrid moe/mixlab --rounds 5
    python benchmarks/gpu_training.py --first-step           # time to the first update instead
    python benchmarks/gpu_training.py --json OUT.json
    python benchmarks/gpu_training.py --readme OUT.json ...  # put finished runs into the README

Every contender trains the same shape on the same number of random tokens with fused AdamW and
gradient clipping, without dropout or router noise. Each has a process of its own, so that one that
fails, or does not start within `--limit` seconds, stands in the table with its error and the
others go on. The contenders of a workload are warmed up one after the other; then they take turns
on the otherwise idle GPU, `--rounds` times `--updates` updates each, in changing order. A round
counts by its median; printed are the median of the rounds and their spread.

mixlab runs through the functions of `mixlab bench`, its data phase included; the peers' batches
lie on the GPU beforehand. MFU counts 6 floating-point operations per parameter in a matrix product
and token, and those of attention and of the delta rule, by mixlab's formula for both sides, over
the rate of a large bfloat16 product measured in the same run. `--tiny` runs everything in a
small size on whatever is here, to see whether it works.
"""

import argparse
import itertools
import json
import os
import shlex
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from training_processes import ContenderError, Process
from training_tables import FIRST_STEPS, SPEEDS, first_step_table, speed_tables, write_tables
from training_workloads import WORKLOADS, Contender, Workload

README = Path(__file__).with_name("README.md")
CACHES = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TILELANG_CACHE_DIR": "tilelang",
    "MIXLAB_CACHE": "mixlab",
    "CUDA_CACHE_PATH": "cuda",
}
"""Where compiled kernels are kept, by environment variable."""
Pair = tuple[Workload, Contender]


def chosen(only: Sequence[str], *, peers: bool, extras: bool, tiny: bool = False) -> list[Pair]:
    """What to run. `only` holds workloads, or workload/contender; empty: everything usual.

    Raises:
        ValueError: a name that nothing has.
    """
    workloads = [w.tiny() for w in WORKLOADS] if tiny else WORKLOADS
    pairs = [(w, c) for w in workloads for c in w.contenders]
    names = {w.key for w in WORKLOADS} | {f"{w.key}/{c.key}" for w, c in pairs}
    for name in only:
        if name not in names:
            raise ValueError(f"--only {name}: expected one of {', '.join(sorted(names))}.")

    def is_wanted(w: Workload, c: Contender) -> bool:
        if f"{w.key}/{c.key}" in only:
            return True
        if only and w.key not in only:
            return False
        return (extras or not c.is_extra) and (peers or c.family == "mixlab")

    return [pair for pair in pairs if is_wanted(*pair)]


def measure(
    rows: list[dict[str, Any]],
    pairs: Sequence[Pair],
    *,
    rounds: int,
    updates: int,
    limit_s: float,
    tiny: bool,
) -> None:
    """Add one row per contender, failed ones included; a row grows while it is measured."""
    groups = [list(group) for _, group in itertools.groupby(pairs, key=lambda pair: pair[0].key)]
    processes: dict[Pair, Process] = {}
    try:
        for group, following in itertools.zip_longest(groups, groups[1:], fillvalue=[]):
            for pair in (*group, *following):  # the next ones import their packages meanwhile
                if pair not in processes:
                    processes[pair] = Process(*pair, tiny=tiny)
            entries = {pair: _row(*pair) for pair in group}
            rows += entries.values()
            taking_part = [(processes[pair], row) for pair, row in entries.items()]
            _measure_group(taking_part, rounds=rounds, updates=updates, limit_s=limit_s)
    finally:
        for process in processes.values():
            process.end()


def _measure_group(
    contenders: Sequence[tuple[Process, dict[str, Any]]],
    *,
    rounds: int,
    updates: int,
    limit_s: float,
) -> None:
    alive = [pair for pair in contenders if _answer(*pair, "start", limit_s)]
    for i in range(rounds):
        for process, row in alive[:: 1 if i % 2 == 0 else -1]:
            if "error" not in row and _answer(process, row, f"round {updates}", limit_s):
                row["rounds_ms"].append(row.pop("ms"))
    for process, row in alive:
        if "error" not in row:
            _answer(process, row, "finish", limit_s)
        process.end()


def _row(workload: Workload, contender: Contender) -> dict[str, Any]:
    return {
        "workload": workload.key,
        "contender": contender.key,
        "label": contender.label,
        "is_ours": contender.family == "mixlab",
        "tokens": workload.shape.tokens,
        "rounds_ms": [],
    }


def _answer(process: Process, row: dict[str, Any], command: str, limit_s: float) -> bool:
    """Send a command and keep its answer in the row; whether it went well."""
    began = time.perf_counter()
    try:
        row |= process.ask(command, limit_s)
    except ContenderError as failure:
        row["error"] = str(failure)
    took = time.perf_counter() - began
    outcome = row.get("error") or _said(row, command)
    name = f"{row['workload']}/{row['contender']}"
    print(f"  {name:30} {command:9} {took:6.1f} s  {outcome}", file=sys.stderr, flush=True)
    return "error" not in row


def _said(row: dict[str, Any], command: str) -> str:
    if command == "start":
        return f"first update {row['first_update_s']:.1f} s"
    if command.startswith("round"):
        ms = statistics.median(row["ms"])
        return f"{ms:.1f} ms, {1000 * row['tokens'] / ms:,.0f} tokens/s"
    return ""


def first_steps(
    rows: list[dict[str, Any]], pairs: Sequence[Pair], *, limit_s: float, tiny: bool
) -> None:
    """Seconds from the start of a process to the end of its first update, without and with caches.

    Nothing else runs meanwhile. The caches are empty folders that the second process finds filled.
    """
    for pair in pairs:
        row = _row(*pair)
        rows.append(row)
        with tempfile.TemporaryDirectory() as folder:
            caches = {name: str(Path(folder) / part) for name, part in CACHES.items()}
            for kind in ("cold_s", "warm_s"):
                began = time.perf_counter()
                process = Process(*pair, tiny=tiny, environment=caches)
                if _answer(process, row, "start", limit_s):
                    # Updates that follow the first one within the answer are taken off again.
                    row[kind] = time.perf_counter() - began - row["more_s"]
                process.end()


def machine() -> dict[str, Any]:
    """Device, its matrix rate, and the versions of what takes part."""
    from importlib import metadata

    import torch

    from mixlab.jobs.device import describe, measure_matmul_flops

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rate = measure_matmul_flops(device, dtype)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    versions = {}
    for name in ("torch", "triton", "transformers", "flash-linear-attention", "fla-core",
                 "flash-qla", "tilelang"):  # fmt: skip
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {"device": describe(device), "matmul_flops": rate, "versions": versions}


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.readme:
        write_tables(README, [json.loads(path.read_text()) for path in args.readme])
        return 0
    try:
        pairs = chosen(args.only, peers=args.peers, extras=args.all, tiny=args.tiny)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if not args.tiny and not _has_gpu():
        print(
            "gpu_training.py needs an NVIDIA GPU, and PyTorch finds none here. See `mixlab "
            "doctor`, or try the same code in a tiny size on this machine with --tiny.",
            file=sys.stderr,
        )
        return 2
    found: dict[str, Any] = {
        "made": date.today().isoformat(),
        "command": _command(list(argv or sys.argv[1:])),
        "tiny": args.tiny,
        **machine(),
    }
    rows: list[dict[str, Any]] = []
    found["kind"], found["rows"] = FIRST_STEPS if args.first_step else SPEEDS, rows
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is measured is not lost
    try:
        if args.first_step:
            first_steps(rows, pairs, limit_s=args.limit, tiny=args.tiny)
        else:
            measure(rows, pairs, rounds=args.rounds, updates=args.updates, limit_s=args.limit,
                    tiny=args.tiny)  # fmt: skip
    finally:
        print(first_step_table(found) if args.first_step else speed_tables(found))
        if args.json is not None:
            args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def _command(arguments: list[str]) -> str:
    """What makes the same run again; where it was written to does not matter."""
    if "--json" in arguments:
        at = arguments.index("--json")
        del arguments[at : at + 2]
    return shlex.join(["python", "benchmarks/gpu_training.py", *arguments])


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="WORKLOAD[/CONTENDER]",
        help=f"of {', '.join(w.key for w in WORKLOADS)}",
    )
    parser.add_argument(
        "--peers",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run the other packages, too",
    )
    parser.add_argument("--all", action="store_true", help="further variants of every contender")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contender")
    parser.add_argument("--updates", type=int, default=8, help="updates in a turn")
    parser.add_argument(
        "--limit",
        type=float,
        default=400,
        metavar="SECONDS",
        help="what a contender may take to start",
    )
    parser.add_argument(
        "--first-step",
        action="store_true",
        help="measure the start instead, with empty and with filled caches",
    )
    parser.add_argument("--tiny", action="store_true", help="small shapes, on a CPU if need be")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument(
        "--readme",
        type=Path,
        nargs="+",
        metavar="FILE",
        default=[],
        help="only write the tables of finished runs into benchmarks/README.md",
    )
    return parser  # fmt: skip


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
