"""results.json: everything that a report needs, worked out anew from study.json and the jobs.

A pure function of the study folder: how often a worker was killed or which driver came first leaves
no trace in it. Reads JSON only, no torch.
"""

from collections.abc import Mapping
from pathlib import Path

from mixlab.core.config import digest
from mixlab.core.errors import LabError
from mixlab.core.json_files import read_json
from mixlab.studies.job_store import JobStore
from mixlab.studies.rounds import Entry, Rounds
from mixlab.studies.rows import COSTS, Row, RowCache
from mixlab.studies.tuning import factor, scaled

FORMAT = 1
_NEEDED = (
    "name", "about", "is_smoke", "metric", "baseline", "seeds", "budget", "tune", "screen", "code",
    "data", "effect", "is_as_published", "match", "arms",
)  # fmt: skip
_QUANTITIES = {
    "tokens": "tokens",
    "steps": "steps",
    "flops": "flops",
    "seconds": "seconds",
    "params": "n_params",
    "active_params": "n_active_params",
}


def read_design(folder: Path) -> Row:
    """study.json.

    Raises:
        LabError: there is no study in this folder, or it is of another format.
    """
    design = read_json(folder / "study.json")
    if design is None:
        raise LabError(
            f"{folder}: is not a study folder: it has no study.json. `mixlab study run` makes one."
        )
    if design.get("format") != FORMAT:
        raise LabError(f"{folder / 'study.json'}: expected format {FORMAT}. Run the study anew.")
    lacks = [key for key in _NEEDED if key not in design]
    if lacks:
        raise LabError(
            f"{folder / 'study.json'} is damaged: it lacks {', '.join(lacks)}. Run the study "
            "again, which writes it anew; what is finished is kept."
        )
    return design


def collect(folder: Path, cache: RowCache | None = None) -> Row:
    """The content of results.json; `cache` holds what a driver of the folder has read already.

    Raises:
        LabError: there is no study in this folder, or a file of it is damaged.
    """
    cache = cache or RowCache(folder, read_design(folder))
    design, rounds = cache.design, cache.rounds
    entries = cache.refresh()
    jobs, environments = _jobs(entries, cache.rows)
    arms = [_arm(rounds, name, cache.rows, jobs) for name in rounds.arms]
    kept = ("name", "about", "is_smoke", "metric", "baseline", "seeds", "budget", "tune", "code",
            "data", "effect", "is_as_published")  # fmt: skip
    return {
        "format": FORMAT,
        **{key: design[key] for key in kept},
        "is_complete": all(entry.address in cache.rows for entry in entries),
        "match": {**design["match"], "realised": _realised(design, arms)},
        "screen": _screen(rounds, cache.rows),
        "paired": _paired(arms, jobs),
        "environments": environments,
        "arms": arms,
        "jobs": jobs,
        "set_aside": _set_aside(folder, design, entries),
        "cost": _cost(jobs),
    }


def _jobs(entries: list[Entry], rows: Mapping[str, Row]) -> tuple[dict[str, Row], dict[str, Row]]:
    jobs: dict[str, Row] = {}
    environments: dict[str, Row] = {}
    for entry in sorted(entries, key=lambda entry: entry.address):
        if entry.address not in jobs:
            row = dict(rows.get(entry.address) or {"status": "waiting", "value": None})
            if row.get("environment") is not None:
                key = digest(row["environment"])
                environments[key] = row["environment"]
                row["environment"] = key
            head = {"arms": [], "purposes": [], "seed": entry.seed, "lr": entry.lr,
                    "factor": factor(entry.index)}  # fmt: skip
            jobs[entry.address] = {**head, **row}
        job = jobs[entry.address]
        for key, value in (("arms", entry.arm), ("purposes", entry.purpose)):
            job[key] = sorted({*job[key], value})
    return jobs, environments


def _arm(rounds: Rounds, name: str, rows: Mapping[str, Row], jobs: Mapping[str, Row]) -> Row:
    spec, design = rounds.arms[name], rounds.design
    index = rounds.chosen_index(name, rows)
    used: dict[str, str] = {}
    if index is not None:
        for arm, seed in rounds._seed_runs(rows):
            if arm == name:
                used[str(seed)] = rounds.entry(name, "seed", seed, index).address
    done = {seed: jobs[address] for seed, address in used.items() if address in jobs}
    values = {seed: job["value"] for seed, job in done.items() if job["value"] is not None}
    tuning = _tuning(rounds, name, rows, jobs)
    screened = _screened_out_after(rounds, name, rows)
    if rounds.is_failed(name, rows):
        status = "failed"
    elif screened is not None:
        status = "screened out"
    elif used and len(values) == len(used):
        status = "done"
    else:
        status = "unfinished"
    why_not = _why_not(status, tuning, done)
    config = {**spec["config"]}
    return {
        **{key: spec[key] for key in _ARM_FACTS},
        "config": config,
        "lr": spec["lr"] if index is None else scaled(spec["lr"], index),
        "realised": _means(done),
        "tuning": tuning,
        "status": status,
        "is_ranked": not why_not,
        "why_not": why_not,
        "values": values,
        "jobs": used,
        "screened_out_after": screened,
        "n_seeds_planned": len(design["seeds"]),
    }


_ARM_FACTS = (
    "name", "about", "changes", "optimizer", "n_params", "n_active_params", "n_embedding_params",
    "flops_per_token", "flops_per_token_counted", "state_bytes", "state_tokens",
    "memory_bytes_estimate", "solved", "planned",
)  # fmt: skip


def _why_not(status: str, tuning: Row | None, done: Mapping[str, Row]) -> str:
    if status == "failed":
        errors = [job["error"]["message"] for job in done.values() if job.get("error")]
        return f"a run failed: {errors[0]}" if errors else "its search for a rate failed"
    if status == "screened out":
        return "screened out"
    if tuning is not None and tuning["status"] == "edge":
        return "its best learning rate lies at the edge of those tried"
    if status == "unfinished":
        return "not finished"
    return ""


def _tuning(
    rounds: Rounds, name: str, rows: Mapping[str, Row], jobs: Mapping[str, Row]
) -> Row | None:
    tune = rounds.design["tune"]
    if tune is None:
        return None
    state, tried = rounds.search(name, rows), rounds._tried(name, rows)
    base_lr = rounds.arms[name]["lr"]
    points = []
    for index in sorted({*tried, *state.wanted}):
        addresses = [rounds.entry(name, "tuning", s, index).address for s in tune["seeds"]]
        found = [jobs[address] for address in addresses if address in jobs]
        values = [job["value"] for job in found]
        is_done = bool(values) and all(value is not None for value in values)
        kinds = {(job.get("error") or {}).get("kind") for job in found}
        status = "waiting"
        if index in tried:
            status = "done" if is_done else "diverged" if "diverged" in kinds else "failed"
        points.append(
            {
                "lr": scaled(base_lr, index),
                "factor": factor(index),
                "value": sum(values) / len(values) if is_done else None,
                "status": status,
                "jobs": addresses,
            }
        )
    best = state.best
    used = {address for point in points for address in point["jobs"]}
    return {
        "status": state.status,
        "seeds": tune["seeds"],
        "base_lr": base_lr,
        "best_lr": None if best is None else scaled(base_lr, best),
        "best_factor": None if best is None else factor(best),
        "points": points,
        "cost": _sum([jobs[address] for address in sorted(used) if address in jobs]),
    }


def _means(done: Mapping[str, Row]) -> Row | None:
    """What the arm's runs took, on average."""
    found = [job for job in done.values() if job["status"] == "done"]
    if not found:
        return None
    means: Row = {}
    for name, key in {**_QUANTITIES, "peak_memory_bytes": "peak_memory_bytes"}.items():
        values = [job[key] for job in found if job.get(key) is not None]
        means[name] = sum(values) / len(values) if values else None
    return means


def _realised(design: Row, arms: list[Row]) -> Row:
    """How equal the matched quantities came out, over the arms that have finished runs."""
    found = {}
    for name in design["match"]["by"]:
        values = [arm["realised"][name] for arm in arms if arm["realised"]]
        values = [value for value in values if value]
        if not values:
            continue
        spread = max(values) / min(values) - 1
        found[name] = {
            "least": min(values),
            "most": max(values),
            "spread": spread,
            "is_within": spread <= design["match"]["tolerance"],
        }
    return found


def _screen(rounds: Rounds, rows: Mapping[str, Row]) -> Row | None:
    if rounds.design["screen"] is None:
        return None
    history = [
        {
            "n_seeds": rung.n_seeds,
            "arms": list(rung.arms),
            "means": rung.means,
            "kept": list(rung.kept),
            "dropped": list(rung.dropped),
            "is_finished": rung.is_finished,
        }
        for rung in rounds.rungs(rows)
    ]
    return {**rounds.design["screen"], "history": history}


def _screened_out_after(rounds: Rounds, name: str, rows: Mapping[str, Row]) -> int | None:
    if rounds.design["screen"] is None:
        return None
    for rung in rounds.rungs(rows):
        if name in rung.dropped:
            return rung.n_seeds
    return None


def _paired(arms: list[Row], jobs: Mapping[str, Row]) -> Row:
    """Whether runs with the same seed saw the same text in the same order."""
    by_seed: dict[str, dict[str, list[str]]] = {}
    for arm in arms:
        for seed, address in arm["jobs"].items():
            job = jobs.get(address, {})
            if job.get("status") == "done":
                mark = f"{job['data']} {job['order']}"
                by_seed.setdefault(seed, {}).setdefault(mark, []).append(arm["name"])
    for seed, marks in by_seed.items():
        if len(marks) > 1:
            first, second = list(marks.values())[:2]
            reason = f"with seed {seed}, arms {first[0]!r} and {second[0]!r} saw other text"
            return {"is_paired": False, "reason": reason}
    return {"is_paired": True, "reason": ""}


def _set_aside(folder: Path, design: Row, entries: list[Entry]) -> list[Row]:
    """Finished runs that do not count: made for an arm as it was before, or by other code."""
    store, wanted = JobStore(folder), {entry.address for entry in entries}
    texts = {arm["data"] for arm in design["arms"]}
    found = []
    for address in store.addresses():
        if address in wanted or not store[address].is_done():
            continue
        job = store[address].job()
        if job.kind != "train":
            continue
        if job.code != design["code"]["digest"]:
            reason = "made by other code than this version of mixlab"
        elif job.data not in texts:
            reason = "made on other text"
        else:
            reason = "made for an arm, rate or seed as it was before the study was edited"
        found.append({"job": address, "arms": [job.config["name"]], "reason": reason})
    return found


def _sum(jobs: list[Row]) -> Row:
    total: Row = {"runs": sum(job["status"] != "waiting" for job in jobs)}
    for key in COSTS:
        total[key] = sum(job.get(key) or 0 for job in jobs)
    return total


def _cost(jobs: Mapping[str, Row]) -> Row:
    rows = [jobs[address] for address in sorted(jobs)]
    only_tuning = [job for job in rows if job["purposes"] == ["tuning"]]
    return {
        **_sum(rows),
        "failed": sum(job["status"] == "failed" for job in rows),
        "tuning": _sum(only_tuning),
    }
