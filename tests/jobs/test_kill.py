"""SIGKILL at any moment costs nothing but time: the resumed run equals one that ran through."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from run_contents import assert_same_run

from mixlab.core.run_dir import is_run

EVERYTHING = [
    "train.length=36",
    "train.micro_batch_size=2",
    "train.optimizer={kind: muon}",
    "train.schedule={kind: wsd, warmup_steps: 3}",
    "train.ema={rate: 0.9}",
    "model.dropout=0.1",
    "model.n_layers=2",
    "model.blocks.full.channel_mixer={kind: moe, n_experts: 4, n_active_experts: 2, d_expert: 8, "
    "scores: sigmoid, bias_update_rate: 0.01, router_noise_std: 0.1}",
    "model.blocks.linear={sequence_mixer: {kind: gated_deltanet, n_heads: 2, head_dim: 8}, "
    "channel_mixer: {kind: mlp, d_ff: 24}}",
    "model.pattern=[linear, full]",
    "checkpoint.every=3",
    "checkpoint.keep_every=12",
    "eval.every=4",
    "checks=quick",
]
"""Every generator, buffer and state that a checkpoint must carry."""
N_KILLS = 20
SEED = 7


@pytest.fixture(scope="module")
def uninterrupted(fork_server, tiny_recipe, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("uninterrupted")
    result = fork_server.run(["train", tiny_recipe, *EVERYTHING, "--run-dir", "run"], cwd=root)
    assert result.code == 0, result.stderr
    return root / "run"


def test_twenty_kills_change_no_bit(uninterrupted, fork_server, tiny_recipe, tmp_path):
    """Half of them by the clock, half of them inside the file operations of saving."""
    g = random.Random(SEED)
    kills, finished, number = 0, 0, 0
    while kills < N_KILLS or not finished:
        number += 1
        run = tmp_path / f"run-{number}"
        while True:
            by_clock = kills % 2 == 0
            die_at = None if by_clock or kills >= N_KILLS else g.randint(1, 90)
            words = ["--resume", run] if is_run(run) else [tiny_recipe, *EVERYTHING]
            if not is_run(run):  # killed before there was anything to resume
                shutil.rmtree(run, ignore_errors=True)
                words += ["--run-dir", run]
            command = fork_server.start(["train", *words], cwd=tmp_path, die_at=die_at)
            if by_clock and kills < N_KILLS:
                time.sleep(g.uniform(0.0, 1.0))
                command.send(signal.SIGKILL)
            result = command.wait()
            if result.code == -signal.SIGKILL:
                kills += 1
                continue
            assert result.code == 0, result.stderr
            break
        finished += 1
        assert_same_run(run, uninterrupted)
