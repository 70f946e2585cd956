"""`mixlab import`: a stock checkpoint on disk as a run folder."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mixlab.core.config import Tree, override, to_tree
from mixlab.core.errors import ConfigError, RunError
from mixlab.core.run_dir import RunDir
from mixlab.data.chat.templates import TEMPLATES
from mixlab.export.stock_folder import StockModel, read_stock_folder
from mixlab.export.target import Target
from mixlab.jobs.config import RunConfig, decode_config
from mixlab.jobs.portable import fill_run_folder, settled_config
from mixlab.jobs.screen import PlainScreen, Screen
from mixlab.jobs.train import RUNS
from mixlab.nn.budget import model_budget

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
SEQ_LEN = 256
"""Tokens of a training sequence, unless the model takes fewer; an override may ask for more."""
# Gentle, since the weights know something already; every part can be overridden.
TRAINING: Tree = {
    "length": "200 steps",
    "batch_size": 8,
    "optimizer": {"kind": "adamw", "lr": 5.0e-5, "weight_decay": 0.01},
    "schedule": {"kind": "linear", "warmup_steps": 20, "floor_frac": 0.1},
}


@dataclass(frozen=True)
class ImportResult:
    """What was made."""

    run: RunDir
    target: Target
    n_params: int
    notes: tuple[str, ...]


def import_checkpoint(
    folder: Path | str,
    *,
    name: str | None = None,
    overrides: Sequence[str] = (),
    screen: Screen | None = None,
) -> ImportResult:
    """Make the run folder runs/NAME of a stock checkpoint; NAME is the folder's unless given.

    `overrides` say on which text and how the run is trained further; nothing is trained here.

    Raises:
        ModelFolderError: what is wrong with the folder, or what mixlab does not have.
        ConfigError: an override that does not fit, or that would change the model.
        RunError: the name is taken.
    """
    screen, folder = screen or PlainScreen(), Path(folder)
    if name is not None:
        if not NAME.fullmatch(name):
            raise RunError(
                f"--name {name!r}: expected letters, digits, '.', '_' and '-', beginning with a "
                "letter or digit."
            )
        RunDir(RUNS / name).refuse_taken()
    with screen.task("Reading the checkpoint", None):
        stock = read_stock_folder(folder)
    stem = name or re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-._")[:90]
    config = _run_config(stem or "imported", stock, folder, overrides)
    run = RunDir.create(RUNS / name) if name else RunDir.create_next(RUNS, config.name)
    origin = {"folder": str(folder.resolve()), "model_type": stock.target.model_type}
    try:
        with screen.task("Writing the run folder", None):
            final = settled_config(config, run.path, stock.tokenizer.eos)
            fill_run_folder(run, final, stock.weights, stock.tokenizer, origin)
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)
        raise
    n_params = model_budget(config.model, config.data.seq_len).n_params
    return ImportResult(run, stock.target, n_params, tuple(_notes(stock)))


def _run_config(name: str, stock: StockModel, folder: Path, overrides: Sequence[str]) -> RunConfig:
    """A config around the model: its own tokenizer, a default text, and a gentle training."""
    path, eos = str(folder.resolve()), stock.tokenizer.eos
    tree: Tree = {
        "name": name,
        "about": f"Imported from {folder.resolve().name}, a {stock.target.label} checkpoint.",
        "data": {
            "corpus": {"kind": "python-stdlib"},
            "tokenizer": {"kind": "file", "path": path, "eos": eos},
            "seq_len": min(SEQ_LEN, stock.config.max_seq_len),
        },
        "model": to_tree(stock.config),
        "train": TRAINING,
    }  # fmt: skip
    for text in overrides:
        key = text.partition("=")[0]
        if key.split(".")[0] in ("model", "kind", "name") or key.startswith("data.tokenizer"):
            raise ConfigError(
                key, text.partition("=")[2], "a setting of data, train, eval, sample or checkpoint",
                "Model and tokenizer are those of the checkpoint.",
            )  # fmt: skip
    config = decode_config(override(tree, overrides))
    assert isinstance(config, RunConfig)
    return config


def _notes(stock: StockModel) -> list[str]:
    notes = []
    if stock.chat_template is not None:
        name = next((n for n, t in TEMPLATES.items() if t.jinja == stock.chat_template), None)
        text = f"Its chat template is mixlab's {name}" if name else "It has a chat template"
        notes.append(
            f"{text}; the run continues plain text. To talk to it, tune it with `mixlab sft`."
        )
    if stock.tokenizer.backend.post_processor is not None:
        ids = stock.tokenizer.backend.encode("a", add_special_tokens=True).ids
        if ids != stock.tokenizer.encode("a"):
            notes.append(
                "In transformers its tokenizer puts special tokens around a text. mixlab puts none,"
                " so its first tokens may be judged otherwise."
            )
    return notes
