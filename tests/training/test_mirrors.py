import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mixlab.core.config import Config, decode
from mixlab.core.errors import ConfigError, MissingPackageError
from mixlab.training.mirrors import MIRRORS, MirroredRun, Mirrors, base, check_mirrors
from mixlab.training.mirrors.trackio import TrackioMirrorConfig
from mixlab.training.mirrors.wandb import WandbMirrorConfig


class LogConfig(Config):
    mirrors: tuple[MIRRORS.annotation(), ...] = ()


def _run(path: Path, is_resumed: bool = False) -> MirroredRun:
    return MirroredRun(name="a-run", path=path, config={"seed": 1}, is_resumed=is_resumed)


def _no_warning(text: str) -> None:
    raise AssertionError(text)


@pytest.fixture
def no_network(monkeypatch):
    """Any connection that leaves this machine fails the test."""
    connect = socket.socket.connect

    def local_only(self, address):
        is_local = self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost")
        assert is_local, f"tried to reach {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


class Recorder:
    def __init__(self, fails_at: int | None = None, fails_to_close: bool = False) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.fails_at, self.fails_to_close, self.is_closed = fails_at, fails_to_close, False

    def log(self, step, row):
        if step == self.fails_at:
            raise ConnectionError("server\nis  gone")
        self.rows.append((step, dict(row)))

    def close(self):
        if self.fails_to_close:
            raise ValueError
        self.is_closed = True


# --- the group


def test_a_mirror_that_raises_is_switched_off_once_and_the_others_go_on():
    warnings: list[str] = []
    good, bad = Recorder(), Recorder(fails_at=2)
    mirrors = Mirrors({"bad": bad, "good": good}, warnings.append)
    for step in range(1, 5):
        mirrors.log(step, {"step": step, "loss_nats": 1.0})
    mirrors.close()
    assert [step for step, _ in bad.rows] == [1]
    assert [step for step, _ in good.rows] == [1, 2, 3, 4]
    assert good.is_closed and not bad.is_closed
    assert warnings == [
        "The mirror bad failed and was switched off (ConnectionError: server is gone). "
        "The run goes on; its folder holds every number."
    ]


def test_a_mirror_that_cannot_be_closed_is_a_warning():
    warnings: list[str] = []
    good = Recorder()
    mirrors = Mirrors({"bad": Recorder(fails_to_close=True), "good": good}, warnings.append)
    mirrors.close()
    mirrors.close()
    assert good.is_closed
    assert len(warnings) == 1 and "could not be closed (ValueError: no reason" in warnings[0]


def test_rows_are_flattened_to_numbers():
    recorder = Recorder()
    mirrors = Mirrors({"r": recorder}, _no_warning)
    row = {"step": 3, "loss_nats": np.float32(0.5), "split": "validation", "mfu": None, "ok": True}
    mirrors.log(3, {**row, "moe": {"load": 2}}, group="validation")
    assert recorder.rows == [(3, {"validation/loss_nats": 0.5, "validation/moe.load": 2.0})]


def test_a_mirror_that_cannot_start_is_left_out(tmp_path: Path, monkeypatch):
    def refuse(self, run):
        raise OSError("no service")

    monkeypatch.setattr(WandbMirrorConfig, "open", refuse)
    warnings: list[str] = []
    Mirrors.open([WandbMirrorConfig()], _run(tmp_path), warnings.append).log(1, {"loss_nats": 1.0})
    assert len(warnings) == 1 and "wandb could not be started (OSError" in warnings[0]


@pytest.mark.parametrize("kind", list(MIRRORS))
def test_a_missing_package_is_refused_before_the_run(kind: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    log = decode(LogConfig, {"mirrors": [{"kind": kind}]})
    with pytest.raises(MissingPackageError, match=rf"pip install .mixlab\[{kind}\]"):
        check_mirrors(log.mirrors)
    with pytest.raises(MissingPackageError):
        Mirrors.open(log.mirrors, _run(tmp_path), _no_warning)


def test_config_names_the_kinds():
    assert list(MIRRORS) == ["tensorboard", "wandb", "trackio"]
    assert decode(LogConfig, {"mirrors": [{"kind": "wandb"}]}).mirrors[0].mode == "offline"
    with pytest.raises(ConfigError, match=r"mirrors\.0\.kind.*tensorboard"):
        decode(LogConfig, {"mirrors": [{"kind": "tensorbord"}]})


def test_no_tracker_and_no_torch_is_imported_before_a_run_opens_one():
    code = (
        "import sys, mixlab.training.mirrors\n"
        "found = {'torch', 'tensorboard', 'wandb', 'trackio'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- the real packages


def test_tensorboard_reads_back_what_was_logged(tmp_path: Path, no_network):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = decode(LogConfig, {"mirrors": [{"kind": "tensorboard"}]})
    mirrors = Mirrors.open(log.mirrors, _run(tmp_path), _no_warning)
    for step in (1, 2, 3):
        mirrors.log(step, {"loss_nats": 1.0 / step})
    mirrors.log(3, {"loss_nats": 2.0}, group="validation")
    mirrors.close()

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["tensors"]) == ["train/loss_nats", "validation/loss_nats"]
    rows = [
        (event.step, event.tensor_proto.float_val[0]) for event in events.Tensors("train/loss_nats")
    ]
    assert rows == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3, rel=1e-6))]  # stored as float32


def test_wandb_offline_keeps_every_row_in_the_run_folder(tmp_path: Path, no_network):
    pytest.importorskip("wandb")
    ids = set()
    for is_resumed in (False, True):
        run = _run(tmp_path, is_resumed)
        mirrors = Mirrors.open([WandbMirrorConfig()], run, _no_warning)
        for step in (1, 2):
            mirrors.log(step, {"loss_nats": 0.5})
        mirrors.close()
        ids.add((tmp_path / "wandb" / "id.txt").read_text())
    assert len(ids) == 1
    files = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert files and all(f"run-{ids.copy().pop()}" in file.name for file in files)
    deadline = time.monotonic() + 20  # wandb's service writes behind our back
    while not all(b"train/loss_nats" in file.read_bytes() for file in files):
        assert time.monotonic() < deadline, "the rows did not reach the run folder"
        time.sleep(0.1)


_TRACKIO = """
import sys
from pathlib import Path
from mixlab.training.mirrors import MirroredRun, Mirrors
from mixlab.training.mirrors.trackio import TrackioMirrorConfig
for is_resumed, steps in ((False, (1, 2)), (True, (3,))):
    run = MirroredRun(name="a-run", path=Path(sys.argv[1]), config={}, is_resumed=is_resumed)
    mirrors = Mirrors.open([TrackioMirrorConfig()], run, print)
    for step in steps:
        mirrors.log(step, {"loss_nats": 1.0 / step})
    mirrors.close()
"""


def test_trackio_keeps_every_row_in_its_local_database(tmp_path: Path):
    pytest.importorskip("trackio")
    # In a process of its own: trackio reads where its database is when it is imported.
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("TRACKIO_")},
        "TRACKIO_DIR": str(tmp_path / "store"),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", _TRACKIO, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    (database,) = (tmp_path / "store").glob(f"{TrackioMirrorConfig().project}.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT step, run_name, metrics FROM metrics ORDER BY step")
        found = [(step, name, json.loads(metrics)) for step, name, metrics in rows]
    assert found == [(s, "a-run", {"train/loss_nats": 1.0 / s}) for s in (1, 2, 3)]
