"""Run folders with chosen figures, which no training has made, and a worker that makes them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixlab.core.config import dump_yaml, override, to_tree
from mixlab.core.run_dir import RunDir
from mixlab.jobs.config import AnyRunConfig, RunConfig, decode_config
from mixlab.studies.sizes import budget_of

TREE: dict[str, Any] = {
    "name": "plain",
    "seed": 1,
    "data": {
        "corpus": {"kind": "text", "path": "text", "document": "file"},
        "tokenizer": {"kind": "bpe", "vocab_size": 300},
        "seq_len": 16,
    },
    "model": {
        "vocab_size": 300,
        "d_model": 16,
        "n_layers": 4,
        "max_seq_len": 64,
        "blocks": {
            "full": {
                "sequence_mixer": {"kind": "attention", "n_heads": 2, "head_dim": 8},
                "channel_mixer": {"kind": "mlp", "d_ff": 24},
            }
        },
    },
    "train": {
        "length": "8 steps",
        "batch_size": 4,
        "optimizer": {"kind": "adamw", "lr": 0.01},
        "device": "cpu",
        "precision": "fp32",
        "threads": 1,
    },
    "eval": {"every": 4, "n_tokens": 256},
}
LOOPED = (
    "name=looped",
    "model.recursion={kind: looped, prelude_layers: 1, core_layers: 2, coda_layers: 1, "
    "depth: {kind: uniform, halt_max_steps: 3}, halting: {kind: gate}}",
)
PUZZLES = "sudoku-4x4"


def config(*overrides: str) -> RunConfig:
    return decode_config(override(TREE, overrides))


def manifest(tokenizer: str = "t1", content: str = "c1") -> dict[str, Any]:
    """What data.json says, as far as a comparison looks at it."""
    return {
        "corpus": {"kind": "text"},
        "content_hash": content,
        "split": {"validation_frac": 0.05},
        "tokenizer": {"hash": tokenizer, "config": {"kind": "bpe"}, "vocab_size": 300},
        "splits": {"validation": {"documents": 3, "bytes": 900}},
    }


def write_run(
    path: Path,
    cfg: AnyRunConfig,
    loss: float = 4.0,
    *,
    data: dict[str, Any] | None = None,
    status: str | None = "finished",
    update_s: float = 0.5,
) -> Path:
    """A run folder whose last validation loss is `loss`, or whose accuracy for puzzles is."""
    run = RunDir.create(path)
    run.write_text("config.yaml", dump_yaml(to_tree(cfg)))
    run.write_json("data.json", data or manifest())
    n_steps, per_step = int(cfg.train.length.amount), cfg.tokens_per_step
    budget = budget_of(cfg)
    rows = []
    for step in range(0, n_steps + 1, max(1, n_steps // 2)):
        left = 1 - step / n_steps
        row = {"step": step, "tokens": step * per_step, "elapsed_s": step * update_s,
               "split": "validation", "n_tokens": 256}  # fmt: skip
        if isinstance(cfg, RunConfig):
            row |= {"loss_nats": loss + left, "bits_per_byte": (loss + left) / 3, "accuracy": 0.1}
        else:
            row |= {"loss_nats": 1.0, "exact_accuracy": loss * (1 - left)}
        rows.append(row)
    for row in rows if status else []:
        run.append("evals.jsonl", row)
    for step in range(1, n_steps + 1):
        run.append("metrics.jsonl", {"step": step, "tokens": step * per_step,
                                     "elapsed_s": step * update_s})  # fmt: skip
    if status is not None:
        summary = {
            "status": status,
            "steps": n_steps,
            "tokens": n_steps * per_step,
            "flops": n_steps * per_step * budget.train_flops_per_token,
            "train_s": n_steps * update_s,
            "n_params": budget.n_params,
            "n_active_params": budget.n_active_params,
            "flops_per_token": budget.train_flops_per_token,
            "device": "cpu",
            "precision": "fp32",
            "context": {"ln_vocab_nats": 5.7, "unigram_entropy_nats": 5.0, "bytes_per_target": 2.0},
            "final": rows[-1],
        }
        run.write_json("summary.json", summary)
    return path


def write_arm(
    folder: Path, name: str, cfg: AnyRunConfig, losses: Sequence[float], **settings: Any
) -> list[str]:
    """Runs with the seeds 1, 2, ...; their paths as a command line has them."""
    paths = []
    for seed, loss in enumerate(losses, start=1):
        seeded = decode_config({**to_tree(cfg), "seed": seed})
        paths.append(str(write_run(folder / f"{name}-{seed}", seeded, loss, **settings)))
    return paths


class StubWorker:
    """In place of `run_requests`: makes runs whose losses a function of the config decides."""

    def __init__(self, loss) -> None:
        self.loss, self.made = loss, []

    def __call__(self, folder, requests, **settings):
        rows = {}
        for request in requests:
            path = folder / "jobs" / request.label.replace(" ", "") / "done" / "run"
            loss = self.loss(request.config)
            if loss is None:
                error = {"kind": "diverged", "message": "the loss is nan."}
                rows[request.label] = {"status": "failed", "error": error}
                continue
            if not path.exists():
                self.made.append(request.label)
                write_run(path, request.config, loss)
            order = f"{request.config.seed}-{request.config.data.seq_len}"
            where = {"run": str(path.relative_to(folder)), "status": "done", "order": order}
            if settings.get("documents"):
                documents = path.parent / "documents.json"
                content = {"nats": [loss * 60, loss * 40], "tokens": [60, 40]}
                documents.write_text(json.dumps(content))
                where["documents"] = str(documents.relative_to(folder))
            rows[request.label] = where
        return rows
