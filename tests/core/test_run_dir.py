import errno
import json
import math
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mixlab.core.errors import RunError
from mixlab.core.run_dir import RunDir, list_runs, to_columns


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir.create(tmp_path / "runs" / "quickstart")
    made.write_text("config.yaml", "seed: 0\n")
    return made


# --- create and open


def test_create_refuses_an_existing_folder_and_names_the_way_out(run: RunDir, tmp_path: Path):
    with pytest.raises(RunError, match=r"is a run already.*--resume .*quickstart"):
        RunDir.create(run.path)
    (tmp_path / "other").mkdir()
    with pytest.raises(RunError, match=r"is a folder already.*delete it first"):
        RunDir.create(tmp_path / "other")


def test_create_where_a_parent_is_a_file(tmp_path: Path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunError, match="runs is a file"):
        RunDir.create(tmp_path / "runs" / "a")
    with pytest.raises(RunError, match="runs is a file"):
        RunDir.create_next(tmp_path / "runs", "a")


def test_create_in_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    # Patched rather than chmod: the superuser may write anywhere.
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunError, match=r"cannot be made: Permission denied.*may write to"):
        RunDir.create(tmp_path / "a")


def test_open_suggests_the_nearest_run(run: RunDir, tmp_path: Path):
    assert RunDir.open(run.path).name == "quickstart"
    with pytest.raises(RunError, match=r"no run folder .*Did you mean .*runs/quickstart\?"):
        RunDir.open(tmp_path / "runs" / "quikstart")
    with pytest.raises(RunError, match=r"Did you mean .*runs/quickstart\?"):
        RunDir.open(tmp_path / "quickstart")
    with pytest.raises(RunError, match=r"The runs are .*quickstart\."):
        RunDir.open(tmp_path / "runs" / "zzz")
    with pytest.raises(RunError, match="mixlab train quickstart"):
        RunDir.open(tmp_path / "elsewhere" / "zzz")


def test_open_says_what_is_missing(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match=r"not a run folder: it holds no config\.yaml"):
        RunDir.open(tmp_path / "folder")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file: expected a run folder"):
        RunDir.open(tmp_path / "file")


def test_create_next_numbers_runs_and_is_race_free(tmp_path: Path):
    with ThreadPoolExecutor(8) as pool:
        made = pool.map(lambda _: RunDir.create_next(tmp_path / "runs", "quickstart"), range(16))
        names = sorted(run.name for run in made)
    assert names == sorted(["quickstart", *(f"quickstart-{i}" for i in range(2, 17))])


def test_create_next_makes_a_folder_name_of_any_text(tmp_path: Path):
    assert RunDir.create_next(tmp_path, "../my recipe").name == "my-recipe"
    assert RunDir.create_next(tmp_path, "..").name == "run"


def test_list_runs_leaves_other_folders_out(run: RunDir):
    (run.path.parent / "notes").mkdir()
    assert list_runs(run.path.parent) == [run.path]
    assert list_runs(run.path / "absent") == []


# --- lock

_HOLDER = """
import sys, time
from mixlab.core.run_dir import RunDir
with RunDir(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_process_is_refused_until_the_first_is_killed(run: RunDir):
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(run.path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=r"quickstart is in use by another process"), run.lock():
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with run.lock():
        pass


def test_lock_excludes_within_one_process_and_is_freed_by_an_exception(run: RunDir):
    with pytest.raises(ZeroDivisionError), run.lock():
        with pytest.raises(RunError, match="in use"), RunDir(run.path).lock():
            pass
        raise ZeroDivisionError
    with run.lock():
        pass


# --- documents


def test_json_round_trip_keeps_values_and_turns_non_finite_into_null(run: RunDir):
    run.write_json("summary.json", {"a": [1, 2.5, math.nan], "b": (np.float32(0.5), np.int64(3))})
    text = run.summary_path.read_text()
    assert "NaN" not in text
    assert run.read_json("summary.json") == {"a": [1, 2.5, None], "b": [0.5, 3]}
    assert run.read_json("absent.json") is None


def test_damaged_json_is_named(run: RunDir):
    run.summary_path.write_text('{"status": ')
    with pytest.raises(RunError, match=r"summary\.json is damaged"):
        run.read_json("summary.json")
    for text in ("[1]", "null", "[" * 100_000):
        run.summary_path.write_text(text)
        with pytest.raises(RunError, match=r"summary\.json is damaged: .* from a copy"):
            run.read_json("summary.json")


def test_a_document_that_cannot_be_replaced_stays_as_it_was(run: RunDir, monkeypatch):
    run.write_json("summary.json", {"status": "old"})

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"summary\.json cannot be written\. The disk is full"):
        run.write_json("summary.json", {"status": "new"})
    assert run.read_json("summary.json") == {"status": "old"}
    assert not list(run.path.glob(".*tmp"))


# --- lines


def test_lines_come_back_in_order(run: RunDir):
    rows = [{"step": i, "loss_nats": 1.0 / i, "moe": {"load": [1, 2]}} for i in range(1, 4)]
    for row in rows:
        run.append("metrics.jsonl", row)
    assert run.read_jsonl("metrics.jsonl") == rows
    assert run.read_jsonl("evals.jsonl") == []


def test_non_finite_numbers_are_null_so_the_file_stays_strict_json(run: RunDir):
    run.append("metrics.jsonl", {"loss_nats": math.nan, "grad_norm": math.inf})
    line = run.metrics_path.read_text()
    assert line == '{"loss_nats":null,"grad_norm":null}\n'


def test_every_torn_end_is_left_out_and_the_next_append_repairs_it(run: RunDir):
    run.append("metrics.jsonl", {"step": 1})
    run.append("metrics.jsonl", {"step": 2})
    whole = run.metrics_path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        run.metrics_path.write_bytes(whole[:cut])
        assert run.read_jsonl("metrics.jsonl") == [{"step": 1}]
        assert run.jsonl_size("metrics.jsonl") == first
        run.append("metrics.jsonl", {"step": 3})
        assert run.read_jsonl("metrics.jsonl") == [{"step": 1}, {"step": 3}]


def test_a_torn_only_line_longer_than_the_read_block(run: RunDir):
    run.samples_path.write_bytes(b"x" * 200_000)
    assert run.jsonl_size("samples.jsonl") == 0
    run.append("samples.jsonl", {"text": "y"})
    assert run.read_jsonl("samples.jsonl") == [{"text": "y"}]


@pytest.mark.parametrize("damage", [b'{"step": \n', b"\0\0\0\n", b"[1]\n", b"\n", b"\xff\n"])
def test_a_damaged_middle_line_is_named(run: RunDir, damage: bytes):
    run.metrics_path.write_bytes(b'{"step": 1}\n' + damage + b'{"step": 3}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 2 is damaged"):
        run.read_jsonl("metrics.jsonl")


def test_truncate_goes_back_to_a_checkpoint(run: RunDir):
    run.truncate_jsonl("metrics.jsonl", 0)  # nothing was written yet
    run.append("metrics.jsonl", {"step": 1})
    size = run.jsonl_size("metrics.jsonl")
    run.append("metrics.jsonl", {"step": 2})
    run.truncate_jsonl("metrics.jsonl", size)
    assert run.read_jsonl("metrics.jsonl") == [{"step": 1}]
    run.truncate_jsonl("metrics.jsonl", 0)
    assert run.read_jsonl("metrics.jsonl") == []
    with pytest.raises(RunError, match=r"has 0 bytes.*had 11.*lines were lost"):
        run.truncate_jsonl("metrics.jsonl", size)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_disk_full_while_appending_is_named(run: RunDir):
    run.metrics_path.symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"metrics\.jsonl cannot be written\. The disk is full"):
        run.append("metrics.jsonl", {"step": 1})


_LIMITED = """
import resource, signal, sys
from mixlab.core.errors import RunError
from mixlab.core.run_dir import RunDir
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
run = RunDir(sys.argv[1])
try:
    while True:
        run.append("metrics.jsonl", {"loss_nats": 1.25})
except RunError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX file size limits")
def test_a_line_that_fits_only_in_part_is_taken_back(run: RunDir):
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(run.path)], capture_output=True, text=True
    )
    assert "metrics.jsonl cannot be written" in done.stdout, done.stderr
    text = run.metrics_path.read_text()
    assert text.endswith("}\n")
    # 19 bytes a line: five whole lines fit into 100 bytes
    assert [json.loads(line) for line in text.splitlines()] == [{"loss_nats": 1.25}] * 5


def test_columns_are_equally_long_flat_and_padded():
    rows = [{"step": 1, "moe": {"load": 2, "drop": {"a": 0}}}, {"step": 2, "mfu": 0.5}]
    assert to_columns(rows) == {
        "step": [1, 2],
        "moe.load": [2, None],
        "moe.drop.a": [0, None],
        "mfu": [None, 0.5],
    }
    assert to_columns([]) == {}


def test_metrics_and_evals_read_their_files(run: RunDir):
    run.append("metrics.jsonl", {"step": 1, "loss_nats": 3.0})
    run.append("evals.jsonl", {"step": 1, "split": "validation"})
    assert run.metrics() == {"step": [1], "loss_nats": [3.0]}
    assert run.evals() == {"step": [1], "split": ["validation"]}


def test_reading_a_run_needs_no_torch():
    code = "import sys, mixlab.core.run_dir; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_taken_name_is_called_what_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "a run").mkdir()
    (tmp_path / "a run" / "config.yaml").write_text("")
    cases = {
        "text": r"is a file.*Choose another name\.$",
        "dangling": "is a file",
        "folder": "is a folder already.*delete it first",
        "": "is the folder you are in.*such as runs/first",
        "a run": r"is a run already.*--resume 'a run'`, or choose",
    }
    for name, message in cases.items():
        for refuse in (lambda path: RunDir(path).refuse_taken(), RunDir.create):
            with pytest.raises(RunError, match=message) as error:
                refuse(name)
            assert ("resume" in str(error.value)) == (name == "a run")
    RunDir("free").refuse_taken()
