"""What decoding holds of a model: which form, how much of it, and whether it is up to date."""

import copy

import pytest
import torch
from infer.decoding_models import logits_after, roughened, shrunk_models

from mixlab.core.errors import BackendError, LabError
from mixlab.infer.decoding import layers
from mixlab.infer.decoding import row_model as rows_of_a_model
from mixlab.infer.decoding.row_model import FusedRows, PlainRows, row_model
from mixlab.infer.engine import Engine, Request, run_all
from mixlab.infer.sampler import SamplingConfig
from mixlab.ops.few_rows import obstacle

RECIPES = shrunk_models()
KINDS = ["attention-mlp", "hybrid-sparse", "looped-lm", "moe"]
"""Recipes that have every kind of mixer between them."""


class Words:
    eos_id, vocab_size = -1, 29

    def decode(self, ids):
        return ""


def greedy_text(rows, n_new=6):
    engine = Engine(rows, Words(), max_rows=2)
    found = []
    for prompt in ([1, 2, 3], [4, 5, 6]):
        engine.add(Request(prompt, n_new, SamplingConfig(temperature=0), ignore_eos=True))
    run_all(engine, lambda event: found.append((event.key, event.token)))
    return found


def change_by_optimizer(model, **settings):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, **settings)
    model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    optimizer.step()


def change_by_loading(model):
    other = roughened(model.cfg)
    change_by_optimizer(other)
    model.load_state_dict(other.state_dict())


CHANGES = {
    "an update": change_by_optimizer,
    "an update one by one": lambda model: change_by_optimizer(model, foreach=False),
    "a fused update": lambda model: change_by_optimizer(model, fused=True),
    "loading": change_by_loading,
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_change_are_taken_anew(change):
    model = roughened(RECIPES["hybrid-sparse"])
    rows = row_model(model)
    beside = rows.fresh()
    rows.read(0, [[1, 2, 3]])
    CHANGES[change](model)
    for part in (rows, beside):
        part.read(0, [[1, 2, 3]])
        found = part.step([4])[0].clone()
        torch.testing.assert_close(found, logits_after(model, [1, 2, 3, 4]), rtol=1e-9, atol=1e-9)


def test_weights_that_do_not_change_are_kept():
    model = roughened(RECIPES["attention-mlp"])
    rows = row_model(model)
    blocks = rows._layers.blocks
    for _ in range(2):
        rows.read(0, [[1, 2, 3]])
        rows.step([4])
    assert rows._layers.blocks is blocks


def test_a_model_that_was_cast_needs_a_new_engine():
    model = roughened(RECIPES["attention-mlp"])
    rows = row_model(model)
    rows.read(0, [[1, 2, 3]])
    model.float()
    for use in (lambda: rows.step([4]), lambda: rows.read(0, [[1, 2]])):
        with pytest.raises(LabError, match=r"float32.*float64.*new engine"):
            use()


@pytest.mark.parametrize("name", KINDS)
def test_both_backends_write_the_same_in_float32(name):
    if reason := obstacle():
        pytest.skip(reason)
    model = roughened(RECIPES[name], torch.float32)
    texts = [greedy_text(row_model(model, backend=backend)) for backend in ("torch", "kernels")]
    assert texts[0] == texts[1]


def test_kernels_are_the_usual_choice_where_they_run(monkeypatch):
    model = roughened(RECIPES["attention-mlp"], torch.float32)
    if reason := obstacle():
        pytest.skip(reason)
    assert row_model(model).form.backend == "kernels"
    assert row_model(model, backend="torch").form.backend == "torch"
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert row_model(half).form.backend == "torch"
    assert row_model(model, precision=torch.bfloat16).form.backend == "torch"


def test_kernels_that_were_asked_for_and_cannot_run():
    model = roughened(RECIPES["attention-mlp"], torch.bfloat16)
    with pytest.raises(BackendError, match=r"kernels.*bfloat16.*torch"):
        row_model(model, backend="kernels")


def test_what_keeps_a_cpu_from_kernels_is_said(monkeypatch):
    monkeypatch.setattr(layers, "obstacle", lambda dtype: "there is no compiler")
    model = roughened(RECIPES["attention-mlp"], torch.float32)
    with pytest.warns(UserWarning, match="slower.*no compiler"):
        rows = row_model(model)
    assert rows.form.backend == "torch"


def test_no_copy_is_made_that_does_not_fit(monkeypatch):
    model = roughened(RECIPES["attention-mlp"])
    n_bytes = sum(p.numel() * p.itemsize for p in model.parameters())
    monkeypatch.setattr(rows_of_a_model, "free_memory_bytes", lambda: n_bytes)
    assert isinstance(row_model(model), FusedRows)
    monkeypatch.setattr(rows_of_a_model, "free_memory_bytes", lambda: n_bytes - 1)
    with pytest.warns(UserWarning, match="one by one.*copy of the weights"):
        rows = row_model(model)
    assert isinstance(rows, PlainRows)


def test_kernels_hold_one_copy_of_the_weights():
    """Besides what fills up panels: 32 outputs, twice that beside gates."""
    if reason := obstacle():
        pytest.skip(reason)
    model = roughened(RECIPES["moe"], torch.float32)
    layers_of_it = row_model(model)._layers
    held, seen = 0, set()
    todo = [layers_of_it.blocks, layers_of_it._head]
    while todo:
        part = todo.pop()
        if isinstance(part, torch.Tensor):
            storage = part.untyped_storage()
            held += 0 if storage.data_ptr() in seen else storage.nbytes()
            seen.add(storage.data_ptr())
        elif isinstance(part, list | tuple):
            todo += part
        elif hasattr(part, "__dict__") and not isinstance(part, torch.nn.Module | type):
            todo += vars(part).values()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    exact = sum(p.numel() * p.itemsize for p in matrices)
    shapes = [p.shape for p in matrices]
    padded = sum(4 * shape[:-2].numel() * (shape[-2] + 64) * shape[-1] for shape in shapes)
    assert exact * 0.8 < held < 1.1 * padded
