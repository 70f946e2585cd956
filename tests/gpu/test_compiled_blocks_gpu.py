"""Compiled blocks on a GPU: no breaks, nothing compiled twice, the same function as before."""

import pytest
import torch
from torch._dynamo.utils import counters

from mixlab.data.synthetic import RandomText
from mixlab.jobs.compiling import compile_blocks
from mixlab.jobs.config import load_config
from mixlab.nn.language_model import build_model
from mixlab.ops.packing import Packing
from mixlab.training.language_modelling import MicroBatch, accumulate_gradients

pytestmark = pytest.mark.gpu

RECIPES = {
    "hybrid-sparse-17": ["model.n_layers=6", "model.pattern.at=[2,5]"],
    "moe": ["model.dropout=0", "model.n_layers=2",
            "model.blocks.experts.channel_mixer.router_noise_std=0"],
    "attention-mlp": ["model.dropout=0"],
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_one_graph_per_kind_of_block(name):
    torch._dynamo.reset()
    counters.clear()
    config = load_config(
        name, [*RECIPES[name], "model.vocab_size=1024", "data.tokenizer.vocab_size=1024"]
    )
    model = build_model(config.model, 0).cuda().train()
    text = RandomText(1024, 256, 0, mean_document=60)

    def gradients():
        found = []
        for i in range(4):  # batches with other numbers of documents
            micro = MicroBatch.of(text.batch(4 * i, 4), pinned=True)
            accumulate_gradients(model, [micro], compute_dtype=torch.bfloat16)
            found.append({n: p.grad.clone() for n, p in model.named_parameters()})
            model.zero_grad()
        return found

    want = gradients()
    compile_blocks(model)
    got = gradients()
    kinds = len(config.model.blocks)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == kinds
    for before, after in zip(want, got, strict=True):
        for parameter, expected in before.items():
            error = (after[parameter] - expected).norm() / expected.norm().clamp(min=1e-6)
            # bfloat16 in other roundings; vectors are sums over tokens that cancel each other.
            limit = 0.1 if expected.dim() > 1 else 0.3
            assert error < limit, f"{parameter}: {error:.1e}"

    model.eval()
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        for position in (0, 4, 8):
            batch = text.batch(position, 4)
            packing = Packing(batch.segments).to(torch.device("cuda"))
            model.trunk(batch.tokens.cuda(), None, packing)
    assert counters["stats"]["unique_graphs"] == 2 * kinds
