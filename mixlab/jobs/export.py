"""`mixlab export`: a trained run as a folder that stock software loads, with proof that it does."""

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mixlab.core.config import read_yaml
from mixlab.core.errors import LabError, RunError
from mixlab.core.json_files import to_plain, write_json
from mixlab.core.provenance import command_line
from mixlab.core.run_dir import RunDir
from mixlab.data.chat.messages import Message
from mixlab.export import parity
from mixlab.export.stock_files import (
    PARITY,
    SEALED,
    ChatFacts,
    DType,
    sha256,
    stock_tensors,
    write_model,
)
from mixlab.export.target import Target
from mixlab.export.verdict import Verdict, lines
from mixlab.export.whole_folder import require_free, whole_folder
from mixlab.jobs.chat_format import open_chat_format
from mixlab.jobs.config import RunConfig, decode_config
from mixlab.jobs.portable import fill_run_folder, settled_config
from mixlab.jobs.screen import PlainScreen, Screen
from mixlab.jobs.trained import TrainedModel, open_trained
from mixlab.jobs.verdict import judge
from mixlab.report.model_card import Exported, model_card

Layout = Literal["hf", "mixlab"]


class NoStockHomeError(LabError):
    """No stock architecture computes what this model computes."""


@dataclass(frozen=True)
class ExportResult:
    """What was written."""

    path: Path
    target: Target | None  # None for mixlab's own format
    step: int
    parity: Mapping[str, Any] | None
    notes: tuple[str, ...]


class _Source(NamedTuple):
    run: RunDir
    config: RunConfig
    trained: TrainedModel


def export_run(
    path: Path | str,
    out: Path | str,
    *,
    layout: Layout = "hf",
    checkpoint: str | int = "best",
    dtype: DType = "float32",
    screen: Screen | None = None,
    command: str | None = None,
) -> ExportResult:
    """Write the weights of one checkpoint to the folder `out`, whole or not at all.

    `hf` is the layout of transformers: it is loaded there, in a process without mixlab, and the
    folder only appears if it computes what the run computes. `mixlab` is a run folder with weights
    and tokenizer alone.

    Raises:
        NoStockHomeError: the reasons, and the way out.
        OutputError: the place is taken, or the disk is full.
        ParityError: the folder computes something else.
        RunError, CheckpointError: no such run or checkpoint, or one that writes no text.
        MissingPackageError: transformers is not installed.
    """
    screen, path, out = screen or PlainScreen(), Path(path), Path(out)
    require_free(out)
    run = RunDir.open(path)
    config = decode_config(read_yaml(run.config_path))
    if not isinstance(config, RunConfig):
        raise RunError(
            f"run {path}: is of kind {config.kind}, which solves puzzles and writes no text, so no "
            f"stock architecture computes it. Its weights lie in {run.checkpoints_path} as "
            "safetensors."
        )
    found = judge(config, run)
    if layout == "hf":
        if found.target is None:
            raise NoStockHomeError(_refusal(path, out, found))
        parity.require_transformers()
    source = _Source(run, config, open_trained(path, checkpoint))
    for note in source.trained.notes:
        screen.note(note)
    command = command or command_line(sys.argv)
    if layout == "mixlab":
        return _write_own(source, out, command, screen)
    assert found.target is not None
    return _write_stock(source, found, out, dtype, command, screen)


def _refusal(path: Path, out: Path, found: Verdict) -> str:
    reasons = "; ".join(found.reasons)
    return (
        f"run {path}: no stock architecture computes this model. The nearest is "
        f"{found.nearest.label}, but {reasons}. Take it along whole with `mixlab export {path} "
        f"--format mixlab --out {out}`."
    )


# --- the layout of transformers -----------------------------------------------------------------


def _write_stock(
    source: _Source, found: Verdict, out: Path, dtype: DType, command: str, screen: Screen
) -> ExportResult:
    target, run, trained = found.target, source.run, source.trained
    assert target is not None
    model = trained.model.to("cpu", torch.float32).eval()
    fmt = open_chat_format(run, trained.tokenizer)
    chat = ChatFacts(fmt.template.jinja, fmt.stop_ids) if fmt.is_tuned else None
    with whole_folder(out) as folder, tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)

        def write(place: Path, kind: DType) -> None:
            tensors = stock_tensors(target, model, kind)
            write_model(place, target, model.cfg, tensors, kind, trained.tokenizer, chat)

        with screen.task("Writing the weights", None):
            write(folder, dtype)
            wide = folder
            if dtype != "float32":  # the certificate is about the function, not about rounding
                wide = work / "float32"
                wide.mkdir()
                write(wide, "float32")
        with screen.task("Computing what is expected", None):
            job = parity.prepare(wide, model, trained.tokenizer, work / "reference.safetensors")
            if chat is not None:
                job = job._replace(chat_ids=fmt.prompt_ids([Message("user", parity.QUESTION)]))
        jobs = [job] if wide == folder else [job, job._replace(folder=folder)]
        with screen.task("Loading the folder with transformers and comparing", None):
            certificate, *rounded = parity.measure(jobs, work, os.environ)
        problem = parity.judge(certificate)
        if not problem and rounded and "error" in rounded[0]:
            problem = f"transformers cannot load it in {dtype} ({rounded[0]['error']})"
        if problem:
            raise parity.ParityError(
                f"the exported folder is not the run: {problem}. Nothing was written. Please "
                "report this with the run's config.yaml."
            )
        notes = _notes(certificate)
        if rounded:
            certificate["rounding"] = {"dtype": dtype, **rounded[0]}
        certificate["step"], certificate["limit"] = trained.step, parity.LIMIT
        certificate["sha256"] = {name: sha256(folder / name) for name in SEALED}
        write_json(folder / PARITY, to_plain(certificate))
        facts = Exported(
            step=trained.step, command=command, dtype=dtype,
            n_params=certificate["n_parameters"], architecture=target.architecture,
            parity=certificate, engines=lines(found), chat=chat is not None, notes=notes,
        )  # fmt: skip
        _describe(folder, run, facts)
    return ExportResult(out, target, trained.step, certificate, tuple(notes))


def _describe(folder: Path, run: RunDir, facts: Exported) -> None:
    """The model card, and the config that it refers to."""
    (folder / "README.md").write_text(model_card(run, facts), encoding="utf-8")
    shutil.copyfile(run.config_path, folder / "run-config.yaml")


def _notes(certificate: Mapping[str, Any]) -> list[str]:
    notes = []
    if certificate["cached_against_uncached"] is None:
        notes.append(
            "Transformers generates with this model without a cache only (generation_config.json "
            "says use_cache: false), since no layer has attention."
        )
    if certificate["greedy_equal"] < certificate["greedy_prompts"]:
        notes.append(
            f"{certificate['greedy_prompts'] - certificate['greedy_equal']} of "
            f"{certificate['greedy_prompts']} greedy continuations differ, where two tokens are "
            "nearly equally likely; the logits agree."
        )
    if certificate.get("tokenizer_adds"):
        notes.append(
            "In transformers the tokenizer puts a token before or after a text; the run was trained"
            " without. Pass add_special_tokens=False."
        )
    return notes


# --- mixlab's own layout ------------------------------------------------------------------------


def _write_own(source: _Source, out: Path, command: str, screen: Screen) -> ExportResult:
    run, config, trained = source
    weights: dict[str, Tensor] = trained.model.to("cpu").state_dict()
    data = run.read_json("data.json") or {}
    origin = {"run": str(run.path.resolve()), "step": trained.step, "command": command}
    with whole_folder(out) as folder, screen.task("Writing the weights", None):
        fill_run_folder(
            RunDir(folder), settled_config(config, out, trained.tokenizer.eos), weights,
            trained.tokenizer, origin, data.get("chat"),
        )  # fmt: skip
        facts = Exported(
            step=trained.step, command=command, dtype="float32",
            n_params=sum(p.numel() for p in trained.model.parameters()), architecture=None,
            parity=None, engines=(), chat="chat" in data, notes=(),
        )  # fmt: skip
        _describe(folder, run, facts)
    return ExportResult(out, None, trained.step, None, ())
