"""What torch.compile makes of the blocks: one graph per kind of block, whatever the batch holds."""

import pytest
import torch
from torch._dynamo.utils import counters

from mixlab.data.synthetic import RandomText
from mixlab.jobs.smoke import load_shrunk
from mixlab.nn.language_model import build_model
from mixlab.ops.packing import Packing
from mixlab.training.language_modelling import accumulate_gradients

RECIPES = ["attention-mlp", "moe"]  # Gated DeltaNet: on a GPU, where its kernels are operators


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()


def gradients(model, text, n):
    found = []
    for i in range(n):
        accumulate_gradients(model, [text.batch(4 * i, 4)])
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
        model.zero_grad()
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_one_graph_per_kind_of_block(name):
    config = load_shrunk(name, ["model.dropout=0"])
    for block in config.model.blocks.values():  # noise would differ, not the graph
        if getattr(block.channel_mixer, "router_noise_std", 0):
            config = load_shrunk(
                name, ["model.dropout=0", "model.blocks.experts.channel_mixer.router_noise_std=0"]
            )
    model = build_model(config.model, 0).train()
    text = RandomText(config.model.vocab_size, config.data.seq_len, 0, mean_document=9)
    want = gradients(model, text, 3)
    for block in model.blocks:
        block.compile(backend="aot_eager")
    got = gradients(model, text, 3)  # three batches with different numbers of documents
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == len(config.model.blocks)
    for before, after in zip(want, got, strict=True):
        for parameter, expected in before.items():
            scale = expected.abs().max().clamp(min=1e-6)
            # Float32: the same sums in another order.
            assert (after[parameter] - expected).abs().max() < 1e-5 * scale, parameter

    model.eval()
    with torch.no_grad():
        for position in (0, 4, 8):
            batch = text.batch(position, 4)
            model.trunk(batch.tokens, None, Packing(batch.segments))
    assert counters["stats"]["unique_graphs"] == 2 * len(config.model.blocks)
