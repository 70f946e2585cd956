"""One job of a study done: train a config, or go on with it, and measure what a study compares."""

import hashlib
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixlab.core.config import digest, to_tree
from mixlab.core.errors import CheckpointError, DataError, RunError
from mixlab.core.json_files import write_json
from mixlab.core.run_dir import RunDir, is_run
from mixlab.data.loader import Loader
from mixlab.data.prepare import PreparedData
from mixlab.evals.by_document import loss_by_document
from mixlab.infer.generate import generate_tokens
from mixlab.infer.sampler import SamplingConfig
from mixlab.jobs.config import AnyRunConfig, RunConfig, decode_config
from mixlab.jobs.device import settle_hardware
from mixlab.jobs.kinds import AnyData, kind_of
from mixlab.jobs.screen import Screen
from mixlab.jobs.session import wanted_windows
from mixlab.jobs.standing import last_summary
from mixlab.jobs.train import resume_run, start_run
from mixlab.jobs.trained import open_trained
from mixlab.nn.language_model import LanguageModel
from mixlab.studies.address import data_key
from mixlab.studies.job_store import Job
from mixlab.tasks.examples import ExampleStream
from mixlab.tasks.prepare import PreparedTask
from mixlab.training import checkpoint as checkpoints

N_PROMPT, N_DECODED = 8, 24
"""Tokens before and of the measurement of decoding."""
N_ORDER = 64
"""Training sequences that go into the hash of the order of the data."""


class InterruptedJobError(Exception):
    """The job was asked to stop; everything is saved."""


class DataCache:
    """The prepared data of the configs that this process has met, so that it is opened once."""

    def __init__(self) -> None:
        self._kept: dict[str, AnyData] = {}

    def open(self, config: AnyRunConfig, screen: Screen) -> AnyData:
        # Further down, a batch and a vocabulary must fit the data: they are part of the key.
        key = digest([to_tree(config.data), config.train.batch_size, config.model.vocab_size])
        if key not in self._kept:
            self._kept[key] = kind_of(config).prepare_data(config, screen)
        return self._kept[key]


def train_job(job: Job, work: Path, screen: Screen, cache: DataCache) -> dict[str, Any]:
    """Train the job's config into `work/run`, or go on there; returns the result.

    Raises:
        InterruptedJobError: a signal asked for it; the run is saved.
        LabError: anything that makes the config impossible here.
    """
    config = decode_config(job.config)
    data = cache.open(config, screen)
    if data_key(data.manifest) != job.data:
        raise DataError(
            "the text has changed since the runs were planned, so this one would not be paired "
            "with the others. Restore the text, or start the same command again."
        )
    is_cuda = settle_hardware(config.train).device.type == "cuda"
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    run = _train(config, data, work / "run", screen)
    decode_ms = None
    if isinstance(config, RunConfig):
        assert isinstance(data, PreparedData)
        model = open_trained(run.path, "last").model
        with screen.task("Timing decoding", None):
            decode_ms = decode_milliseconds(model)
        if job.documents:
            with screen.task("Measuring every document", None):
                write_json(work / "documents.json", _documents(model, config, data))
    summary = last_summary(run)
    _thin(run, job.keep)
    return {
        "summary": summary,
        "order": data_order(config, data),
        "data": job.data,
        "environment": run.read_json("environment.json"),
        "decode_ms": decode_ms,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if is_cuda else None,
    }


def _train(config: AnyRunConfig, data: AnyData, path: Path, screen: Screen) -> RunDir:
    """A finished run at `path`, whatever was there before."""
    run = RunDir(path)
    if is_run(path) and last_summary(run).get("status") in ("finished", "stopped early"):
        return run  # killed between its end and its result
    result = None
    if is_run(path) and checkpoints.steps(run.checkpoints_path):
        try:
            result = resume_run(path, screen=screen, data=data, command="mixlab study run")
        except (CheckpointError, RunError) as error:
            screen.note(f"Beginning again: {error}")
    if result is None:
        _set_aside(path)
        result = start_run(config, run_dir=path, screen=screen, data=data,
                           command="mixlab study run")  # fmt: skip
    if result.status == "interrupted":
        raise InterruptedJobError
    return result.run


def _set_aside(path: Path) -> None:
    """Make room for a new run; a process that hangs may still have the old one open."""
    number = 1
    while path.exists():
        target = path.with_name(f"abandoned-{number}")
        if not target.exists():
            path.rename(target)
        number += 1


def data_order(config: AnyRunConfig, data: AnyData) -> str:
    """A hash of the first training sequences: equal for two runs that see the same in order."""
    found = hashlib.blake2b(digest_size=10)
    if isinstance(config, RunConfig):
        assert isinstance(data, PreparedData)
        loader = Loader(data.split("train"), config.data.seq_len, config.seed)
        arrays: Any = [loader.batch(0, N_ORDER).tokens.numpy()]
    else:
        assert isinstance(data, PreparedTask)
        stream = ExampleStream(
            data.task, data.sets["train"], config.seed, augment=config.data.augment
        )
        arrays = stream.batch(0, N_ORDER)
    for array in arrays:
        found.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def decode_milliseconds(model: LanguageModel) -> float:
    """Median time of a further token of one sequence, drawn greedily."""
    prompt = list(range(1, min(N_PROMPT, model.cfg.vocab_size - 1) + 1))
    n_new = min(N_DECODED, model.cfg.max_seq_len - len(prompt))
    greedy = SamplingConfig(temperature=0.0)
    times, start = [], time.perf_counter()
    for _ in generate_tokens(model, prompt, max_new_tokens=n_new, sampling=greedy, seed=0):
        now = time.perf_counter()
        times.append(now - start)
        start = now
    return 1000 * statistics.median(times[1:] or times)


def _documents(model: LanguageModel, config: RunConfig, data: PreparedData) -> dict[str, Any]:
    """The loss of every validation document with the last weights, averaged ones if there are."""
    hardware = settle_hardware(config.train)
    loader = Loader(data.split("validation"), config.data.seq_len, config.seed)
    found = loss_by_document(
        model,
        loader,
        min(wanted_windows(config), loader.n_windows),
        config.eval.batch_size,
        data.split("validation").token_bytes,
        compute_dtype=hardware.compute_dtype,
    )
    return {
        "documents": list(range(len(found.nats))),
        "nats": found.nats.tolist(),
        "tokens": found.n_targets.tolist(),
        "bytes": found.n_bytes.tolist(),
    }


def _thin(run: RunDir, keep: str) -> None:
    """Delete checkpoints that the study does not keep."""
    folder = run.checkpoints_path
    steps = checkpoints.steps(folder)
    if keep == "all" or not steps:
        return
    best = checkpoints.read_best(folder)
    kept = set() if keep == "none" else {steps[-1]} | ({best.step} if best else set())
    checkpoints.prune(folder, kept & set(steps))
