"""Every executor for real: processes, submitit's local cluster, and a Ray cluster of processes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from screens import Quiet
from stub_study import start_stub, stub_design

from mixlab.core.errors import LabError, MissingPackageError
from mixlab.studies.executors import open_executor
from mixlab.studies.executors.base import tail, worker_command
from mixlab.studies.executors.local import LocalExecutor
from mixlab.studies.prepare_study import prepare_study
from mixlab.studies.progress import Silent
from mixlab.studies.runner import RunnerConfig
from mixlab.studies.study import drive_study

STUDY = """\
base: patterns.yaml
budget: 6 steps
seeds: 2
changes: {eval.every: 6, checkpoint.every: 3, sample.n: 0, checks: 'off'}
grid: {train.optimizer.lr: [0.005, 0.01]}
"""


def finish(study_lab, **runner):
    (study_lab / "rates.yaml").write_text(STUDY)
    prepared = prepare_study("rates.yaml", runner=runner, screen=Quiet())
    folder = study_lab / "studies" / "rates"
    return folder, drive_study(prepared.found, folder, prepared.asked, Silent()).results


def values(results):
    return {arm["name"]: arm["values"] for arm in results["arms"]}


@pytest.mark.slow
def test_all_executors_give_the_same_figures(study_lab):
    """They start one command, so what differs is only where it runs."""
    pytest.importorskip("ray")
    pytest.importorskip("submitit")
    import ray

    folder, local = finish(study_lab, executor="local", workers=2)
    assert local["is_complete"] and len(local["jobs"]) == 4
    folder.rename(study_lab / "local")
    folder, slurm = finish(
        study_lab, executor="slurm", workers=2, slurm={"cluster": "local", "timeout_min": 5}
    )
    assert list((folder / "workers" / "slurm").glob("*_log.out"))
    folder.rename(study_lab / "slurm")
    # A cluster of two nodes, each a set of processes of its own with one core.
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    try:
        _, found = finish(
            study_lab, executor="ray", ray={"address": cluster.address, "num_cpus": 1}
        )
        assert len(ray.nodes()) == 2
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert values(local) == values(slurm) == values(found)
    assert local["jobs"].keys() == slurm["jobs"].keys() == found["jobs"].keys()


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_no_worker_behind(study_lab):
    """Workers of this machine notice, save and end; the same command finishes the study."""
    long = STUDY.replace("budget: 6 steps", "budget: 4000 steps").replace("seeds: 2", "seeds: 1")
    (study_lab / "rates.yaml").write_text(long)
    command = [sys.executable, "-m", "mixlab", "study", "run", "rates.yaml"]
    first = subprocess.Popen(command, cwd=study_lab, stderr=subprocess.DEVNULL)
    folder = study_lab / "studies" / "rates"
    deadline = time.monotonic() + 200

    def holders():
        found = []
        for path in folder.glob("jobs/*/lease-*"):
            text = path.read_bytes()
            if not text.endswith(b"R"):
                found.append(json.loads(text.partition(b"\n")[0])["pid"])
        return [pid for pid in found if os.path.exists(f"/proc/{pid}")]

    def has_saved():
        return list(folder.glob("jobs/*/work-*/run/checkpoints/step-*"))

    while not (holders() and has_saved()):
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.2)
    first.kill()
    first.wait()
    while holders():
        assert time.monotonic() < deadline, "workers outlive their driver"
        time.sleep(0.2)
    (study_lab / "rates.yaml").write_text(long)
    second = subprocess.Popen(command, cwd=study_lab, stderr=subprocess.PIPE, text=True)
    while not holders():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    second.send_signal(signal.SIGINT)
    _, told = second.communicate(timeout=120)
    assert second.returncode == 130 and "Stopping: workers save and end" in told
    assert not holders()


def test_local_workers_have_a_device_each(tmp_path, monkeypatch):
    started = []

    class Process:
        def __init__(self, command, **settings):
            started.append((command, settings["env"], settings["start_new_session"]))

        def poll(self):
            return None

    monkeypatch.setattr("mixlab.studies.executors.local.subprocess.Popen", Process)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus = LocalExecutor(tmp_path, RunnerConfig(), n_gpus=4, threads=2)
    assert gpus.n_workers == 4
    gpus.start(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    gpus.start(1)
    cores = LocalExecutor(tmp_path, RunnerConfig(workers=3), n_gpus=0, threads=2)
    assert cores.n_workers == 3
    cores.start(0)
    devices = [env.get("CUDA_VISIBLE_DEVICES") for _, env, _ in started[:2]]
    assert devices == ["2", "7"]
    assert started[2][1]["OMP_NUM_THREADS"] == "2"
    command, _, has_session = started[0]
    assert has_session, "Ctrl-C is for the driver alone"
    assert command[1:6] == ["-m", "mixlab", "study", "worker", str(tmp_path)]
    assert command[command.index("--parent") + 1] == str(os.getpid())


def test_all_executors_start_one_command(tmp_path):
    start_stub(tmp_path, stub_design())
    command = worker_command(tmp_path, RunnerConfig(hang_after="5 minutes"), 3)
    assert command[-4:] == ["--slot", "3", "--hang-after", "300"]
    assert tail(tmp_path / "nothing") == ""


@pytest.mark.parametrize("name, package", [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf'mixlab\[{name}\]"'):
        open_executor(RunnerConfig(executor=name), tmp_path, n_gpus=0, threads=1)


def test_settings_that_an_executor_refuses(tmp_path):
    pytest.importorskip("submitit")
    with pytest.raises(LabError, match=r"runner\.slurm"):
        open_executor(
            RunnerConfig(executor="slurm", slurm={"cluster": "local", "partitoin": "gpu"}),
            tmp_path, n_gpus=0, threads=1,
        )  # fmt: skip


@pytest.mark.parametrize("settings", [{"timeout_min": "ten"}, {"cluster": "nowhere"}])
def test_what_submitit_refuses_is_one_line(tmp_path, settings):
    pytest.importorskip("submitit")
    runner = RunnerConfig(executor="slurm", slurm={"cluster": "local", **settings})
    with pytest.raises(LabError, match=r"runner\.slurm = .*submitit refuses it") as error:
        open_executor(runner, tmp_path, n_gpus=0, threads=1)
    assert "\n" not in str(error.value)
