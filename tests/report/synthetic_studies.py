"""Study folders with known truth, in the format that the study runner writes."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

NOISE, SEED_PART = 0.012, 0.02
"""Spread of a run, and of what all arms share at one seed, in nats."""

ENVIRONMENT = {
    "command": "mixlab study run x", "python": "3.11.7",
    "cpu": {"model": "AMD EPYC", "n_usable_cores": 2},
    "packages": {"mixlab": "0.1.0", "torch": "2.13.0"},
    "git": {"commit": "efdcb533da455d8a6cbac481415ce5ac1cb1560d", "is_dirty": False},
    "accelerator": {"device": "cpu", "device_name": "AMD EPYC"},
}  # fmt: skip
DATA = {
    "corpus": {"kind": "python-packages"}, "content_hash": "500b405c98d10a35d66d51a76392c84f",
    "read": {"documents": 9120, "bytes": 98163249}, "tokenizer": {"vocab_size": 8192},
    "overlap": {"n_words": 13, "validation": {"used": 0.021}},
    "splits": {name: {"tokens": n} for name, n in
               {"train": 2.4e7, "validation": 1.4e6, "test": 1.3e6}.items()},
}  # fmt: skip


def write_study(
    folder: Path,
    effects: Mapping[str, float],
    *,
    seeds: Sequence[int] = (1, 2, 3),
    rng_seed: int = 0,
    noise: float = NOISE,
    tuned: bool = True,
    edge: Sequence[str] = (),
    failed: Mapping[str, str] | None = None,
    done: float = 1.0,
    base: str | None = None,
    metric: str = "validation.loss_nats",
    n_evals: int = 24,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    **extra: Any,
) -> Path:
    """A study whose arms truly end at 4 + effect nats; `done` is the share of runs that finished.

    `failed` maps "arm/seed" to an error. The first arm is the base unless `base` names one.
    """
    rng = np.random.default_rng(rng_seed)
    shared = {seed: SEED_PART * rng.standard_normal() for seed in seeds}
    jobs: dict[str, Any] = {}
    arms = []
    n_runs = len(effects) * len(seeds)
    started = 0
    for index, (name, effect) in enumerate(effects.items()):
        cost = 1.0 + 0.06 * index
        arm_jobs, values = {}, {}
        for seed in seeds:
            started += 1
            value = 4.0 + effect + shared[seed] + noise * rng.standard_normal()
            address = f"{index:02d}{seed:02d}a5f3"
            error = (failed or {}).get(f"{name}/{seed}")
            state = "failed" if error else "done" if started <= done * n_runs else "waiting"
            jobs[address] = _job(folder, address, name, seed, value, cost, state, error, n_evals,
                                 metric, rng)  # fmt: skip
            arm_jobs[str(seed)] = address
            if state == "done":
                values[str(seed)] = jobs[address]["value"]
        tuning = (
            _tuning(folder, jobs, name, index, effect, cost, name in edge, rng) if tuned else None
        )
        n_params = 12_000_000 + 9_000 * index
        finished = [jobs[a] for a in arm_jobs.values() if jobs[a]["status"] == "done"]
        arms.append({
            "name": name, "about": f"The variant {name}.",
            "changes": (changes or {}).get(name, {"model.pattern.at": list(range(index))}),
            "lr": tuning["best_lr"] if tuning else 1e-3, "optimizer": "muon",
            "n_params": n_params, "n_active_params": n_params, "n_embedding_params": 3_000_000,
            "flops_per_token": 7.2e7 * cost, "state_bytes": 60_000 + 40_000 * index,
            "state_tokens": 1024, "memory_bytes_estimate": 4.2e8 * cost, "solved": None,
            "planned": {"steps": 400, "tokens": 20e6, "flops": 1.4e15 * cost, "seconds": None},
            "realised": {"peak_memory_bytes": 4.2e8 * cost if finished else None},
            "tuning": tuning,
            "status": "done" if len(finished) == len(seeds) else "unfinished",
            "is_ranked": name not in edge and bool(finished),
            "why_not": "its best learning rate is the largest that was tried" if name in edge else
                       "" if finished else "no finished run",
            "values": values, "jobs": arm_jobs, "screened_out_after": None,
        })  # fmt: skip
    tree = {
        "format": 1, "name": folder.name, "about": "How much attention does a hybrid need?",
        "is_smoke": False, "is_complete": done >= 1,
        "metric": {"name": metric, "lower_is_better": "accuracy" not in metric, "unit": ""},
        "baseline": base or next(iter(effects)), "seeds": list(seeds),
        "match": {"by": ["tokens", "params"], "tolerance": 0.01, "solve": "d_ff", "realised": {}},
        "budget": {"per_run": "20M tokens", "total": None},
        "tune": {"seeds": [1]} if tuned else None, "screen": None,
        "paired": {"is_paired": True, "reason": ""},
        "code": {"version": "0.1.0", "digest": "abc", "commit": "efdcb533da45", "torch": "2.13"},
        "environments": {"e": ENVIRONMENT}, "data": {"d": DATA}, "arms": arms, "jobs": jobs,
        "set_aside": [],
        "cost": {"runs": len(jobs), "failed": 0, "tokens": 1e9, "seconds": 14_000.0,
                 "flops": sum(j.get("flops") or 0 for j in jobs.values()), "tuning": {}},
        **extra,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(tree))
    return folder


def _job(
    folder: Path, address: str, arm: str, seed: int, value: float, cost: float, state: str,
    error: str | None, n_evals: int, metric: str, rng: np.random.Generator,
) -> dict[str, Any]:  # fmt: skip
    row = {"arms": [arm], "purposes": ["seed"], "seed": seed, "lr": 1e-3, "status": state,
           "value": None, "error": None, "run": f"jobs/{address}/done/run"}  # fmt: skip
    if state == "failed":
        kind, _, message = (error or "").partition(": ")
        return {**row, "error": {"kind": kind, "message": message, "attempts": [1, 2]}}
    if state != "done":
        return row
    key = metric.rpartition(".")[2]
    tokens, flops, seconds = 20e6, 1.4e15 * cost, 300 * cost * (1 + 0.02 * rng.standard_normal())
    run = folder / "jobs" / address / "done" / "run"
    run.mkdir(parents=True, exist_ok=True)
    bytes_per_token = 3.1
    lines = []
    for i in range(n_evals + 1):
        share = i / n_evals
        if key == "loss_nats":
            y = (
                value
                + (8.9 - value) * math.exp(-6 * share) * (1 - share)
                + (0.006 * rng.standard_normal() * (share < 1))
            )
        else:
            y = value * share
        lines.append(json.dumps({
            "step": 400 * i // n_evals, "tokens": tokens * share, "elapsed_s": seconds * share,
            "split": "validation", key: y, "weights": "raw",
        }))  # fmt: skip
    (run / "evals.jsonl").write_text("\n".join(lines) + "\n")
    final = {key: value, "weights": "raw", "tokens": tokens}
    if key == "loss_nats":
        final["bits_per_byte"] = value / math.log(2) / bytes_per_token
    return {
        **row, "value": value, "final": final, "test": {key: value + 0.03},
        "unigram_entropy_nats": 6.45, "steps": 400, "tokens": tokens, "flops": flops,
        "seconds": seconds, "tokens_per_s": tokens / seconds, "peak_memory_bytes": 4.2e8 * cost,
        "data": "d", "order": "h", "environment": "e",
        "curves": {"metrics": None, "evals": f"jobs/{address}/done/run/evals.jsonl"},
        "documents": None,
    }  # fmt: skip


def _tuning(
    folder: Path, jobs: dict[str, Any], arm: str, index: int, effect: float, cost: float,
    is_edge: bool, rng: np.random.Generator,
) -> dict[str, Any]:  # fmt: skip
    best = 1e-3 * 2 ** (0.5 * (index % 3))
    grid = [best * 2.0**k for k in ((-3, -2, -1, 0) if is_edge else (-2, -1, -0.5, 0, 0.5, 1))]
    points = []
    for n, lr in enumerate(grid):
        address = f"t{index:02d}{n}"
        value = 4.02 + effect + 0.05 * math.log2(lr / best) ** 2 + 0.004 * rng.standard_normal()
        jobs[address] = {
            "arms": [arm], "purposes": ["tuning"], "seed": 1, "lr": lr, "status": "done",
            "value": value, "final": {"loss_nats": value}, "run": f"jobs/{address}/done/run",
            "flops": 1.4e15 * cost, "tokens": 20e6, "seconds": 300 * cost, "error": None,
        }  # fmt: skip
        points.append(
            {"lr": lr, "factor": lr / 1e-3, "value": value, "status": "done", "jobs": [address]}
        )
    return {
        "status": "edge" if is_edge else "interior", "seeds": [1], "base_lr": 1e-3, "best_lr": best,
        "best_factor": best / 1e-3, "points": points, "cost": {},
    }  # fmt: skip


HYBRIDS = {
    "attention-0": 0.06, "attention-8": 0.03, "attention-17": 0.004, "attention-25": 0.0,
    "attention-33": 0.005, "attention-42": 0.01, "attention-50": 0.012, "attention-58": 0.02,
    "attention-67": 0.03, "attention-75": 0.04, "attention-83": 0.06, "attention-92": 0.09,
    "attention-100": 0.16,
}  # fmt: skip
