"""The cache: whole or not at all, whoever is killed or looks on."""

import errno
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fork_server import Command

from mixlab.core.errors import DataError
from mixlab.data import cache
from mixlab.data.cache import build_once, checksum
from mixlab.data.progress import Silent


def write_two(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"a" * 1000)
    (folder / "b.bin").write_bytes(b"b" * 1000)


def test_it_is_built_once(tmp_path):
    calls = []

    def build(folder):
        calls.append(folder)
        write_two(folder)

    for _ in range(3):
        build_once(tmp_path / "x" / "y", "the thing", build, Silent())
    assert len(calls) == 1
    assert (tmp_path / "x" / "y" / "a.bin").read_bytes() == b"a" * 1000


def test_a_failed_build_leaves_nothing(tmp_path):
    def build(folder):
        write_two(folder)
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        build_once(tmp_path / "y", "the thing", build, Silent())
    assert [path.name for path in tmp_path.iterdir()] == [".y.lock"]
    build_once(tmp_path / "y", "the thing", write_two, Silent())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda p: p.write_bytes(b"a" * 999), "999 bytes instead of 1000"),
        (lambda p: p.write_bytes(b"a" * 999 + b"x"), "its checksum differs"),
        (lambda p: p.unlink(), "No such file"),
    ],
)
def test_damage_is_detected_and_named(tmp_path, damage, reason):
    folder = build_once(tmp_path / "y", "the thing", write_two, Silent())
    damage(folder / "a.bin")
    with pytest.raises(DataError, match=rf"a\.bin of the thing is damaged \({reason}.*Delete"):
        build_once(folder, "the thing", write_two, Silent())


def test_a_damaged_seal_is_named(tmp_path):
    folder = build_once(tmp_path / "y", "the thing", write_two, Silent())
    (folder / "files.json").write_text("{")
    with pytest.raises(DataError, match=r"files\.json of the thing is damaged"):
        build_once(folder, "the thing", write_two, Silent())


def test_large_files_are_checked_by_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_WHOLE_BYTES", 1000)
    monkeypatch.setattr(cache, "_SAMPLE_BYTES", 10)
    path = tmp_path / "large"
    path.write_bytes(bytes(5000))
    before = checksum(path)
    for place in (0, 4999):
        path.write_bytes(bytes(place) + b"x" + bytes(4999 - place))
        assert checksum(path) != before
    path.write_bytes(bytes(5001))
    assert checksum(path) != before


def test_a_full_disk_is_a_readable_error(tmp_path):
    def build(folder):
        write_two(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DataError, match=r"No space left on device.*choose another cache"):
        build_once(tmp_path / "y", "the thing", build, Silent())
    assert not (tmp_path / "y").exists()


def test_a_cache_that_is_no_folder_is_a_readable_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        build_once(tmp_path / "file" / "y", "the thing", write_two, Silent())


# --- several processes ---

SLOW_BUILDER = """
import sys, time
from pathlib import Path
from mixlab.data.cache import build_once

class Loud:
    def note(self, message): print(message, flush=True)

def build(folder):
    (folder / "a.bin").write_bytes(b"half")
    print("building", flush=True)
    while not Path(sys.argv[2]).exists():
        time.sleep(0.01)
    (folder / "a.bin").write_bytes(b"whole")

build_once(Path(sys.argv[1]), "the thing", build, Loud())
print("done", flush=True)
"""


def start_builder(folder: Path, release: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", SLOW_BUILDER, str(folder), str(release)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_second_process_waits_says_so_and_builds_nothing(tmp_path):
    release = tmp_path / "release"
    with start_builder(tmp_path / "y", release) as first:
        assert first.stdout.readline() == "building\n"
        with start_builder(tmp_path / "y", release) as second:
            assert "Another process is building the thing" in second.stdout.readline()
            release.touch()
            assert first.communicate()[0] == "done\n"
            assert second.communicate()[0] == "done\n"
    assert (tmp_path / "y" / "a.bin").read_bytes() == b"whole"


def test_a_killed_build_is_never_taken_for_complete(tmp_path):
    with start_builder(tmp_path / "y", tmp_path / "never") as first:
        assert first.stdout.readline() == "building\n"
        with start_builder(tmp_path / "y", tmp_path / "release") as second:
            assert "Another process" in second.stdout.readline()
            first.send_signal(signal.SIGKILL)
            first.wait()
            # The kernel frees the lock; the one who waited builds anew.
            assert second.stdout.readline() == "building\n"
            assert not (tmp_path / "y").exists()
            (tmp_path / "release").touch()
            assert second.communicate()[0] == "done\n"
    assert (tmp_path / "y" / "a.bin").read_bytes() == b"whole"
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*.partial"))


PREPARE = """
import json, sys
from pathlib import Path
from mixlab.core.config import decode
from mixlab.data.config import DataConfig
from mixlab.data.prepare import prepare

data = prepare(decode(DataConfig, json.loads(sys.argv[1])), Path(sys.argv[2]))
print(json.dumps(data.manifest, sort_keys=True))
"""


@pytest.fixture
def start_prepare(fork_server, folder, data_config, tmp_path):
    """Prepare the same data in a process of its own, into a folder of `tmp_path`."""
    script = tmp_path / "prepare.py"
    script.write_text(PREPARE)

    def start(cache: str) -> Command:
        words = [data_config(folder).model_dump_json(), tmp_path / cache]
        return fork_server.start(words, cwd=tmp_path, script=str(script))

    return start


def test_two_processes_prepare_the_same_data_at_once(start_prepare, tmp_path):
    both = [start_prepare("cache") for _ in range(2)]
    outputs = [process.wait().stdout for process in both]
    assert outputs[0] == outputs[1]
    assert json.loads(outputs[0])["splits"]["train"]["tokens"] > 1000
    assert len(list((tmp_path / "cache" / "tokens").glob("[!.]*"))) == 1


def test_preparing_survives_being_killed_at_any_time(start_prepare):
    begin = time.monotonic()
    expected = start_prepare("reference").wait().stdout
    duration = time.monotonic() - begin
    for i in range(8):
        process = start_prepare("cache")
        time.sleep(duration * (0.1 + 0.1 * i))
        process.send(signal.SIGKILL)
        process.wait()
    assert start_prepare("cache").wait().stdout == expected
