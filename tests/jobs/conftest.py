"""Runs of the tiny recipe in this process."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from screens import Quiet
from tiny_runs import NOISY, Signalling

from mixlab.jobs.sitting import RunResult
from mixlab.jobs.train import resume_run, start_run


@pytest.fixture(autouse=True)
def signals_as_at_a_terminal():
    """A shell may start background jobs with Ctrl-C ignored; the tests mean a person's."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def uninterrupted(fork_server, tiny_recipe, tmp_path_factory) -> Path:
    """The tiny recipe with dropout, average and accumulation, run through: 12 steps."""
    root = tmp_path_factory.mktemp("uninterrupted")
    result = fork_server.run(["train", tiny_recipe, *NOISY, "--run-dir", "run"], cwd=root)
    assert result.code == 0, result.stderr
    return root / "run"


@pytest.fixture(scope="session")
def finished(fork_server, tiny_recipe, tmp_path_factory) -> Path:
    """The tiny recipe run through, which kept steps 5 and 10."""
    root = tmp_path_factory.mktemp("finished")
    words = ["train", tiny_recipe, "checkpoint.keep_every=5", "--run-dir", "run"]
    result = fork_server.run(words, cwd=root)
    assert result.code == 0, result.stderr
    return root / "run"


@pytest.fixture
def finished_run(finished, lab) -> Path:
    """`lab / "run"`: a copy of it, which a test may spoil."""
    return shutil.copytree(finished, lab / "run")


@pytest.fixture
def finished_noisy_run(uninterrupted, lab) -> Path:
    """The same of the recipe with dropout, average and accumulation."""
    return shutil.copytree(uninterrupted, lab / "run")


@pytest.fixture
def train_tiny(lab, tiny_recipe, quiet, no_pictures) -> Callable[..., RunResult]:
    """Train the tiny recipe with overrides into `lab / name`."""

    def run(*overrides: str, name: str = "run", screen: Quiet | None = None) -> RunResult:
        return start_run(
            str(tiny_recipe), overrides, run_dir=lab / name, screen=screen or quiet, command="test"
        )

    return run


@pytest.fixture
def resume(quiet, no_pictures) -> Callable[..., RunResult]:
    def run(path: Path, **settings) -> RunResult:
        return resume_run(path, **{"screen": quiet, "command": "test", **settings})

    return run


@pytest.fixture
def interrupted(train_tiny, lab) -> Callable[..., Path]:
    """A noisy run that was stopped by Ctrl-C after some updates."""

    def stop(at_step: int) -> Path:
        screen = Signalling(at_step, signal.SIGINT)
        result = train_tiny(*NOISY, screen=screen)
        assert result.status == "interrupted" and result.signal == signal.SIGINT
        return lab / "run"

    return stop
