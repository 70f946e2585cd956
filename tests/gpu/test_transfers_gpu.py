"""What leaves a GPU while it goes on working is what was there when it was asked for."""

import pytest
import torch

from mixlab.data.batch import Batch
from mixlab.training.background import BackgroundWriter
from mixlab.training.objective import StepMetrics
from mixlab.training.prefetch import Ahead
from mixlab.training.readings import Reading

pytestmark = pytest.mark.gpu


def work(n: int = 4000) -> torch.Tensor:
    """Keeps the GPU busy for some milliseconds."""
    x = torch.randn(n, n, device="cuda")
    for _ in range(20):
        x = x @ x / n
    return x


def test_a_save_holds_the_state_before_later_updates():
    writer, written = BackgroundWriter(), []
    w = torch.zeros(5_000_000, device="cuda")
    for i in range(3):
        work()
        w.fill_(i)
        writer.submit({"model": {"w": w, "tied": w}}, lambda g: written.append(g["model"]))
        w.fill_(-1)  # the next update, queued before the copy has begun
    writer.wait()
    writer.close()
    assert [group["w"] is group["tied"] for group in written] == [True] * 3
    assert written[-1]["w"].unique().tolist() == [2.0]  # the buffers are used again
    assert written[-1]["w"].is_pinned()


def test_figures_are_those_of_the_update():
    def metrics(x):
        loads = {"share": x.repeat(3), "dead": (x * 2).long()}
        return StepMetrics(x, x + 1, 3, x + 2, {"layer_00": loads}, figures={"steps": x.long()})

    readings = []
    for i in range(5):
        work(1000)
        readings.append(Reading(metrics(torch.tensor(float(i), device="cuda"))))
    for i, reading in enumerate(readings):
        found = reading.figures()
        assert found[:4] == (i, i + 1, i + 2, {"steps": float(i)})
        assert found.layers == {"layer_00": {"share": [i, i, i], "dead": 2 * i}}


def test_examples_made_ahead_arrive_as_they_were_made():
    def make(position: int) -> Batch:
        tokens = torch.full((64, 1024), position)
        return Batch(tokens, tokens + 1, tokens.int()).pinned()

    ahead = Ahead(make, 1, torch.device("cuda"))
    sums = []
    for position in range(30):
        batch = ahead.take(position).to("cuda")
        work(500)
        sums.append(batch.tokens.float().mean() + batch.targets.float().mean())
    ahead.close()
    assert [float(s) for s in sums] == [2 * p + 1 for p in range(30)]
