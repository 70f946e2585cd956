"""Decoding steps recorded as CUDA graphs against one call over each whole text."""

import pytest
import torch
from infer.decoding_models import roughened, shrunk_models

from mixlab.infer.decoding.row_model import FusedRows, row_model
from mixlab.infer.engine import Engine, Request
from mixlab.infer.sampler import SamplingConfig
from mixlab.nn.recursion.loop_pass import Loops

pytestmark = pytest.mark.gpu
RECIPES = shrunk_models()
PROMPTS = [[5, 6, 7], [1, 2, 3, 4] * 10, [9]]


def logits_after(model, tokens):
    loops = None if model.recursion is None else Loops()
    given = torch.tensor([tokens], device="cuda")
    with torch.no_grad():
        return model(given, last_only=True, loops=loops).logits[0, -1]


@pytest.mark.parametrize("name", RECIPES)
def test_recorded_steps_are_the_whole_texts(name):
    """In float32, with rows that grow past the first 256 slots, leave and join."""
    model = roughened(RECIPES[name], torch.float32).cuda()
    rows = row_model(model, loops=None if model.recursion is None else Loops())
    assert isinstance(rows, FusedRows) and rows.is_static
    texts = [list(text) for text in PROMPTS]
    found = torch.stack([rows.read(i, [text])[0] for i, text in enumerate(texts)])
    for i in range(6):
        if i == 3:  # the first has ended, the last takes its place
            rows.move(2, 0)
            texts = [texts[2], texts[1]]
        tokens = [(7 * i + k) % 29 for k in range(len(texts))]
        found = rows.step(tokens).clone()
        for text, token in zip(texts, tokens, strict=True):
            text.append(token)
        want = torch.stack([logits_after(model, text) for text in texts])
        # Float32 sums in another order.
        assert (found - want).abs().max() < 2e-4 * want.abs().max()
    assert rows.graphs.problem is None, rows.graphs.problem
    assert rows.graphs._steps, "nothing was recorded"


@pytest.mark.parametrize("name", ["quickstart", "hybrid-sparse", "moe", "attention-mlp"])
@pytest.mark.parametrize("precision", [None, torch.bfloat16], ids=str)
def test_texts_are_the_same_alone_and_together(name, precision):
    """Greedy in float32; in bfloat16 only that it runs, as near ties may fall either way."""
    model = roughened(RECIPES[name], torch.float32).cuda()

    class Words:
        eos_id, vocab_size = 0, model.cfg.vocab_size

        def decode(self, ids):
            return ""

    def run(prompts):
        engine = Engine(row_model(model, precision=precision), Words(), max_rows=4)
        greedy = SamplingConfig(temperature=0)
        keys = [engine.add(Request(p, 12, greedy, ignore_eos=True)) for p in prompts]
        found = {key: [] for key in keys}
        while engine.n_live or engine.n_waiting:
            for event in engine.step():
                found[event.key].append(event.token)
        return [found[key] for key in keys]

    together = run(PROMPTS)
    assert [len(text) for text in together] == [12] * 3
    if precision is None:
        assert together == [run([prompt])[0] for prompt in PROMPTS]
