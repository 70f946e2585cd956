"""A list of runs without a study around it: leased, resumed and retried as in a study."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixlab.core.config import to_tree
from mixlab.core.errors import LabError
from mixlab.studies.executors.base import Executor
from mixlab.studies.job_store import Job
from mixlab.studies.progress import Silent, Snapshot, StudyScreen, snapshot
from mixlab.studies.rows import job_row
from mixlab.studies.runner import RunnerConfig

if TYPE_CHECKING:
    from mixlab.jobs.config import AnyRunConfig
    from mixlab.jobs.screen import Screen


@dataclass(frozen=True)
class Request:
    """One run that is asked for."""

    label: str  # names it in the answer
    config: "AnyRunConfig"  # with its length in steps, so that it is the same run on any machine


@dataclass(frozen=True)
class _Listed:
    label: str
    job: Job
    address: str


def run_requests(
    folder: Path,
    requests: Sequence[Request],
    *,
    runner: RunnerConfig | None = None,
    metric: str = "validation.loss_nats",
    keep: str = "last",
    documents: bool = False,
    screen: "Screen | None" = None,
    study_screen: StudyScreen | None = None,
    executor: Callable[[], Executor] | None = None,
    **settings: Any,
) -> dict[str, dict[str, Any]]:
    """Make every requested run that `folder` does not have yet; label -> row as in results.json.

    Equal configs are run once. A run that fails twice comes back with the status "failed" and its
    error. The runs lie under `folder/jobs`; `row["run"]` is relative to the folder.

    Raises:
        LabError: a label given twice, text that is missing, no worker can go on.
        InterruptedStudyError: stopped by a signal; the same call goes on.
    """
    import torch

    from mixlab.data.progress import Silent as SilentProgress
    from mixlab.jobs.kinds import kind_of
    from mixlab.studies.address import code_version, data_key
    from mixlab.studies.driver import Driver
    from mixlab.studies.executors import open_executor
    from mixlab.studies.study import stop_on_signals

    labels = [request.label for request in requests]
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if repeated:
        raise LabError(f"requests: expected every label once, but {repeated[0]!r} comes twice.")
    code, keys, listed = code_version()["digest"], {}, []
    for request in requests:
        config = request.config
        place = repr((to_tree(config.data), config.model.vocab_size, config.train.batch_size))
        if place not in keys:
            data = kind_of(config).prepare_data(config, screen or SilentProgress())
            keys[place] = data_key(data.manifest)
        job = Job("train", to_tree(config), keys[place], code, keep, documents)
        listed.append(_Listed(request.label, job, job.address))
    if not listed:
        return {}
    runner = runner or RunnerConfig()
    first = requests[0].config.train
    n_gpus = torch.cuda.device_count() if first.device != "cpu" else 0
    threads = runner.threads or first.threads or 1

    def open_workers() -> Executor:
        return open_executor(runner, folder, n_gpus=n_gpus, threads=threads)

    told = study_screen or Silent()
    with stop_on_signals(told.note) as stop:
        driver = Driver(folder, executor or open_workers, told, stop=stop, **settings)
        with driver:
            return _run(driver, listed, {"metric": {"name": metric}})


def _run(driver: Any, listed: list[_Listed], design: dict[str, Any]) -> dict[str, dict[str, Any]]:
    store, rows = driver.store, {}
    words = {each.address: each.label for each in listed}

    def look() -> Snapshot:
        for address in words:
            if address not in rows:
                row = job_row(design, store[address], driver.folder)
                if row is not None:
                    rows[address] = row
        return snapshot(store, words, rows, len(words), n_workers=driver.n_workers)

    driver.drive(lambda: listed, look)
    look()
    return {
        each.label: {**rows[each.address], "seed": each.job.config["seed"], "job": each.address}
        for each in listed
    }
