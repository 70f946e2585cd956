"""A run folder made of weights alone: what an import makes, and `mixlab export --format mixlab`.

It stands at step 0 of its own training: it holds weights, tokenizer and a config, and neither
figures nor an optimizer's state. It can be used like any run; training it further starts afresh.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from mixlab.core.config import dump_yaml, to_tree
from mixlab.core.run_dir import RunDir
from mixlab.data.tokenizers.base import Tokenizer
from mixlab.jobs.config import RunConfig, decode_config
from mixlab.jobs.verdict import ORIGIN
from mixlab.training import checkpoint as checkpoints
from mixlab.training.loop import Progress

LOGS = ("metrics.jsonl", "evals.jsonl")


def settled_config(config: RunConfig, final: Path, eos: str) -> RunConfig:
    """The config of a run that will lie at `final` and begins with given weights.

    Its tokenizer is the folder's own, with its end-of-text token `eos`: one trained anew would give
    other ids.
    """
    tree = to_tree(config)
    path = str(final.absolute() / "tokenizer.json")
    tree["data"]["tokenizer"] = {"kind": "file", "path": path, "eos": eos}
    tree["train"]["bridge"] = None
    tree["train"]["ema"] = None
    return decode_config(tree)


def fill_run_folder(
    run: RunDir,
    config: RunConfig,
    weights: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    origin: Mapping[str, Any],
    chat: Mapping[str, Any] | None = None,
) -> None:
    """Write the run; config.yaml, which makes the folder a run, comes last.

    `origin` says where the weights are from.

    Raises:
        CheckpointError, RunError: the disk is full or the folder cannot be written.
    """
    tree = to_tree(config)
    run.write_text("tokenizer.json", tokenizer.to_json())
    facts = {
        "hash": tokenizer.hash,
        "eos": tokenizer.eos,
        "vocab_size": tokenizer.vocab_size,
        "config": tree["data"]["tokenizer"],
    }
    data: dict[str, Any] = {"imported": True, "tokenizer": facts}
    if chat is not None:
        data["chat"] = dict(chat)
    run.write_json("data.json", data)
    state = {
        "progress": asdict(Progress()),
        "log_bytes": dict.fromkeys(LOGS, 0),
        "config": tree,
    }
    checkpoints.save(run.checkpoints_path, 0, {"model": weights}, state)
    run.write_json(ORIGIN, dict(origin))
    run.write_json("summary.json", {"status": "imported", "steps": 0, "tokens": 0, "flops": 0})
    run.write_text("config.yaml", dump_yaml(tree))
