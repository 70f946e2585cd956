"""Two GPUs, joined by NCCL, train as one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs here"),
]

WORDS = [
    "train.device=cuda", "train.length=6", "train.micro_batch_size=1", "eval.every=3",
    "checkpoint.every=3", "checkpoint.keep_every=3", "model.n_layers=2",
    "train.optimizer={kind: muon, ns_dtype: float32}", "sample.n=0",
]  # fmt: skip


def losses(run: Path) -> list[float]:
    rows = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["loss_nats"] for row in rows]


def launch(n: int, words: list[object], cwd: Path, cache: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n)]
    env = {**os.environ, "MIXLAB_CACHE": str(cache)}
    done = subprocess.run(
        [*command, "-m", "mixlab", "train", *map(str, words)],
        cwd=cwd, env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_gpus_train_as_one(precision, tiny_recipe, shared_cache, tmp_path):
    words = [tiny_recipe, *WORDS, f"train.precision={precision}"]
    launch(1, [*words, "--run-dir", "one"], tmp_path, shared_cache)
    want = losses(tmp_path / "one")
    tolerance = {"fp32": 1e-4, "bf16": 5e-3}[precision]  # rounding, of one update after the other
    for parallel in ("ddp", "fsdp"):
        run = tmp_path / parallel
        launch(2, [*words, f"train.parallel={parallel}", "--run-dir", run], tmp_path, shared_cache)
        assert losses(run) == pytest.approx(want, rel=tolerance)
        launch(1, ["--resume", run, "--at-step", "3"], tmp_path, shared_cache)
        assert losses(run) == pytest.approx(want, rel=tolerance)
