"""Steps of several sequences at once against one call over each whole text; every recipe."""

import pytest
import torch
from infer.decoding_models import logits_after, roughened, shrunk_models, small, with_mixer
from tiny_mixers import CHANNEL, SEQUENCE, cases

from mixlab.infer.decoding import attention, channels, key_values, latent
from mixlab.infer.decoding.product import Product
from mixlab.infer.decoding.row_model import FusedRows, PlainRows, row_model
from mixlab.infer.decoding.rows import RopeTables, Rows
from mixlab.infer.decoding.static import StaticStep
from mixlab.nn.recursion.loop_pass import Loops
from mixlab.ops.few_rows import obstacle

RECIPES = shrunk_models()
KINDS = ["attention-mlp", "hybrid-sparse", "looped-lm", "moe"]
"""Recipes that have every kind of mixer between them."""
PROMPTS = [[5, 6, 7], [1, 2, 3, 4] * 10, [9]]


BACKENDS = ["torch", "kernels"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    return or_skip(request.param)


def or_skip(backend):
    if backend == "kernels" and (reason := obstacle(torch.float64)):
        pytest.skip(reason)
    return backend


def draw(n, seed=0):
    return torch.randint(0, 29, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def assert_follows(model, rows, texts, n_steps=3):
    """Logits of every row are those of its own text, while texts grow."""
    found = torch.stack([rows.read(i, [text])[0] for i, text in enumerate(texts)])
    texts = [list(text) for text in texts]
    for i in range(n_steps):
        want = torch.stack([logits_after(model, text) for text in texts])
        # The same sums in another order, in float64.
        torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9 * want.abs().max().item())
        tokens = draw(len(texts), seed=i)
        for text, token in zip(texts, tokens, strict=True):
            text.append(token)
        found = rows.step(tokens)


@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, "kernels") for name in RECIPES] + [(name, "torch") for name in KINDS],
)
def test_rows_of_different_lengths_are_as_if_alone(name, backend):
    model = roughened(RECIPES[name])
    assert_follows(model, row_model(model, backend=or_skip(backend)), PROMPTS)


@pytest.mark.parametrize("name", KINDS)
def test_rows_of_one_length(name, backend):
    model = roughened(RECIPES[name])
    rows = row_model(model, backend=backend)
    assert_follows(model, rows, [draw(4, 1), draw(4, 2)], n_steps=3)


@pytest.mark.parametrize("case", cases(SEQUENCE), ids=" ".join)
def test_every_variant_of_a_sequence_mixer(case, backend):
    kind, variant = case
    if kind == "token_mlp":
        pytest.skip("not causal, so it cannot write")
    model = roughened(small({"kind": kind, **SEQUENCE[kind][variant]}))
    assert_follows(model, row_model(model, backend=backend), PROMPTS, n_steps=4)


@pytest.mark.parametrize("case", cases(CHANNEL), ids=" ".join)
def test_every_variant_of_a_channel_mixer(case, backend):
    kind, variant = case
    attention = {"kind": "attention", **SEQUENCE["attention"]["plain"]}
    model = roughened(small(attention, {"kind": kind, **CHANNEL[kind][variant]}))
    assert_follows(model, row_model(model, backend=backend), PROMPTS, n_steps=4)


@pytest.mark.parametrize(
    "settings", [{"tie_embeddings": False}, {"scale_embeddings": True}, {"dropout": 0.5}], ids=str
)
def test_settings_of_the_model(settings):
    model = roughened(small({"kind": "attention", **SEQUENCE["attention"]["plain"]}, **settings))
    assert_follows(model, row_model(model), PROMPTS, n_steps=2)


@pytest.mark.parametrize("name", KINDS)
def test_prompts_of_one_length_are_read_together(name):
    model = roughened(RECIPES[name])
    rows = row_model(model)
    rows.read(0, [[9, 8, 7]])
    texts = [draw(6, 1), draw(6, 2), draw(6, 3)]
    found = rows.read(1, texts)
    want = torch.stack([logits_after(model, text) for text in texts])
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9 * want.abs().max().item())
    texts = [[9, 8, 7, 1], *([*text, 1] for text in texts)]
    want = torch.stack([logits_after(model, text) for text in texts])
    found = rows.step([1, 1, 1, 1])
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9 * want.abs().max().item())


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("has_narrow_weights", [True, False])
def test_in_half_precision(name, has_narrow_weights):
    """By the weights' own dtype, or by that of the products."""
    model = roughened(RECIPES[name], torch.float32)
    text = draw(12)
    want = logits_after(model, text)
    if has_narrow_weights:
        model = model.to(torch.bfloat16)
    rows = row_model(model, precision=None if has_narrow_weights else torch.bfloat16)
    rows.read(0, [text[:-1], text[:-1]])
    found = rows.step([text[-1]] * 2)
    assert found.dtype == torch.float32
    # 8 bits in each of some tens of operations in a row.
    torch.testing.assert_close(found[1], want, rtol=0, atol=0.1 * want.abs().max().item())


def looped(**recursion):
    parts = {"prelude_layers": 1, "core_layers": 1, "coda_layers": 1}
    mixer = {"kind": "attention", **SEQUENCE["attention"]["grouped"]}
    return small(mixer, n_layers=3, recursion={"kind": "looped", **parts, **recursion})


@pytest.mark.parametrize("injection", ["add", "linear", "concat"])
@pytest.mark.parametrize("state_init", ["input", "zeros", "learned"])
def test_loops_of_a_fixed_number(injection, state_init):
    model = roughened(looped(injection=injection, state_init=state_init, L_cycles=2))
    rows = row_model(model, loops=Loops(steps=2, may_exit=True))
    assert isinstance(rows, FusedRows)
    rows_at_trained_depth = row_model(model)
    assert_follows(model, rows_at_trained_depth, PROMPTS, n_steps=2)
    text = [1, 2, 3]
    want = model(torch.tensor([text]), last_only=True, loops=Loops(steps=2)).logits[0, -1]
    rows.read(0, [text[:2]])
    torch.testing.assert_close(rows.step(text[2:])[0], want, rtol=1e-9, atol=1e-9)


GATE = {"kind": "gate", "exit_threshold": 0.6, "q_head_bias_init": 0.0}


def by_output(threshold):
    return {"kind": "kl_exit", "exit_threshold": threshold}


@pytest.mark.parametrize(
    ("halting", "recursion"),
    [
        (by_output(0.01), {"state_init": "input"}),
        (by_output(0.003), {"state_init": "input", "L_cycles": 2}),
        (by_output(0.02), {"state_init": "learned"}),
        (by_output(0.02), {"state_init": "learned", "L_cycles": 2}),
        (GATE, {"state_init": "input", "L_cycles": 2}),
        (GATE, {"state_init": "learned"}),
    ],
    ids=str,
)
def test_tokens_that_leave_early(halting, recursion):
    """Rows go together, and each gives what it gives alone, where deeper loops are made up for."""
    model = roughened(looped(halting=halting, **recursion))
    trace = model.trunk(torch.tensor([draw(40)]), loops=Loops(may_exit=True)).loops
    assert len(trace.n_steps.unique()) > 1, "all tokens take as many steps"
    rows = row_model(model)
    assert isinstance(rows, FusedRows)
    assert_follows(model, rows, PROMPTS, n_steps=4)
    rows.read(0, [draw(5, 1), draw(5, 2)])
    want = torch.stack([logits_after(model, [*draw(5, i), 3]) for i in (1, 2)])
    torch.testing.assert_close(rows.step([3, 3]), want, rtol=1e-9, atol=1e-9)


def test_exits_long_before_the_last_loop_are_taken_row_by_row():
    model = roughened(looped(halting=by_output(0.01)))
    loops = Loops(steps=40, may_exit=True)
    rows = row_model(model, loops=loops)
    assert isinstance(rows, PlainRows)
    text = [1, 2, 3]
    rows.read(0, [text[:2]])
    want = model(torch.tensor([text]), last_only=True, loops=loops).logits[0, -1]
    torch.testing.assert_close(rows.step(text[2:])[0], want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("cfg", "change"),
    [("attention", {"backend": "reference"}), ("mla", {"decode_backend": "expanded"})],
)
def test_a_form_that_was_asked_for_by_name_is_kept(cfg, change):
    cfg = with_mixer(small({"kind": cfg, **SEQUENCE[cfg]["plain"]}), **change)
    model = roughened(cfg)
    rows = row_model(model)
    assert not rows.is_static, "the mixer itself runs"
    assert_follows(model, rows, PROMPTS, n_steps=2)


def test_experts_by_their_definition_run_as_they_are():
    attention = {"kind": "attention", **SEQUENCE["attention"]["plain"]}
    model = roughened(
        small(attention, {"kind": "moe", "backend": "loop", **CHANNEL["moe"]["plain"]})
    )
    rows = row_model(model)
    assert not rows.is_static
    assert_follows(model, rows, PROMPTS, n_steps=2)


@pytest.mark.parametrize("name", KINDS)
def test_a_row_takes_the_place_of_another(name, any_cache):
    model = roughened(RECIPES[name])
    rows = row_model(model, backend=any_cache)
    texts = [list(text) for text in PROMPTS]
    for i, text in enumerate(texts):
        rows.read(i, [text])[0]
    rows.step([1, 1, 1])
    rows.move(2, 0)  # the first text has ended
    found = rows.step([2, 3])
    for row, text in enumerate(([*PROMPTS[2], 1, 2], [*PROMPTS[1], 1, 3])):
        want = logits_after(model, text)
        torch.testing.assert_close(found[row], want, rtol=1e-9, atol=1e-9 * want.abs().max().item())


def spoil(rows, row, n_tokens):
    """Whatever the row has kept of its first tokens becomes NaN."""
    with torch.inference_mode():
        for cache in rows._caches:
            if isinstance(cache, key_values.ColumnCache):
                cache.k[row, :, :n_tokens] = cache.v[row, :, :, :n_tokens] = torch.nan
            elif isinstance(cache, key_values.PanelCache):
                cache.k[row] = cache.v[row] = torch.nan
            else:
                cache.kv[:, row, :, :n_tokens] = torch.nan


def is_clean(rows):
    """Whether everything is finite that a step may see; a recorded one sees all slots."""
    if rows.form.backend == "kernels":  # each row sees its own slots
        return True
    kept = [part for cache in rows._caches for part in vars(cache).values()]
    return all(part.isfinite().all() for part in kept if isinstance(part, torch.Tensor))


@pytest.fixture(params=["PanelCache", "ColumnCache", "KeyValueCache"])
def any_cache(request, monkeypatch):
    """Of a CPU with and without kernels, and of a GPU; the backend that takes it."""
    if request.param == "PanelCache":
        return or_skip("kernels")
    monkeypatch.setattr(attention, "ColumnCache", getattr(key_values, request.param))
    return "torch"


def test_a_row_of_nan_does_not_outlive_its_text(any_cache):
    """0 * NaN is NaN, so what a mask hides must not be a NaN."""
    model = roughened(small({"kind": "attention", **SEQUENCE["attention"]["plain"]}))
    rows = row_model(model, backend=any_cache)
    rows.read(0, [[1] * 20])
    rows.read(1, [[2] * 3])
    spoil(rows, 0, 20)
    rows.read(0, [[3, 4]])
    found = rows.step([5, 6])
    texts = [[3, 4, 5], [2, 2, 2, 6]]
    want = torch.stack([logits_after(model, text) for text in texts])
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)
    assert is_clean(rows)


def test_no_nan_is_left_where_rows_have_moved(any_cache):
    model = roughened(small({"kind": "attention", **SEQUENCE["attention"]["plain"]}))
    rows = row_model(model, backend=any_cache)
    for row, n_tokens in enumerate([30, 5, 3]):
        rows.read(row, [[1] * n_tokens])
    rows.step([1, 1, 1])
    spoil(rows, 0, 31)
    rows.move(2, 0)  # the longest text has gone; its slots are not all taken
    want = torch.stack([logits_after(model, text) for text in ([1] * 5, [1] * 7)])
    torch.testing.assert_close(rows.step([1, 1]), want, rtol=1e-9, atol=1e-9)
    rows.read(0, [[3, 4]])
    assert rows.step([1, 1]).isfinite().all()
    assert is_clean(rows)


@pytest.mark.parametrize("name", KINDS)
def test_the_form_that_a_graph_records_is_the_same(name, monkeypatch):
    """Fixed places, rows rounded up, all slots: as on a GPU, here without recording."""
    model = roughened(RECIPES[name])
    loops = None if model.recursion is None else Loops()
    rows = row_model(model, loops=loops, backend="torch")
    monkeypatch.setattr(attention, "ColumnCache", key_values.KeyValueCache)
    monkeypatch.setattr(key_values, "attend", key_values.attend_by_products)
    monkeypatch.setattr(latent, "attend", key_values.attend_by_products)
    monkeypatch.setattr(channels.MoEStep, "_chosen", channels.MoEStep._all)
    texts = [list(text) for text in PROMPTS]
    for i, text in enumerate(texts):
        rows.read(i, [text])[0]
    step = StaticStep(rows.forward, 4, rows.n_slots, rows._tables, torch.device("cpu"))
    for i in range(3):
        tokens = draw(3, seed=i)
        kept = [cache.aside(4) for cache in rows._caches]
        with torch.inference_mode():
            step.fill(tokens, rows.lengths[:3])
            step.run()  # warming up leaves nothing behind
            for cache, states in zip(rows._caches, kept, strict=True):
                cache.restore(states)
            found = step(tokens, rows.lengths[:3])
        rows.lengths[:3] = [n + 1 for n in rows.lengths[:3]]
        for text, token in zip(texts, tokens, strict=True):
            text.append(token)
        want = torch.stack([logits_after(model, text, Loops()) for text in texts])
        torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9 * want.abs().max().item())


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("n_tokens", [1, 40])
def test_bytes_of_a_row_are_those_of_the_formula(name, n_tokens):
    """The formula is the one that `mixlab show` prints, per layer and looped application."""
    cfg = RECIPES[name]
    model = roughened(cfg, torch.float32)
    loops = None if model.recursion is None else Loops()
    rows = row_model(model, loops=loops)
    rows.read(0, [draw(n_tokens)])
    layers = cfg.layers()
    if cfg.recursion is not None:
        first = cfg.recursion.prelude_layers
        last = first + cfg.recursion.core_layers
        n_loops = cfg.recursion.depth.trained_steps * cfg.recursion.loops_per_step
        layers = layers[:first] + layers[first:last] * n_loops + layers[last:]
    want = sum(cfg.blocks[b].sequence_mixer.state_bytes(cfg.d_model, n_tokens, 4) for b in layers)
    assert rows.state_bytes(1) == want


def bytes_held(rows):
    tensors = (v for cache in rows._caches for v in vars(cache).values())
    return sum(t.numel() * t.itemsize for t in tensors if isinstance(t, torch.Tensor))


def test_a_state_that_does_not_grow_does_not_grow():
    model = roughened(small({"kind": "gated_deltanet", **SEQUENCE["gated_deltanet"]["plain"]}))
    rows = row_model(model)
    rows.read(0, [[1]])
    before = bytes_held(rows)
    for _ in range(40):
        rows.step([2])
    assert bytes_held(rows) == before


def test_values_have_few_slots_to_spare():
    """Their rows follow each other closely, and are seldom copied."""
    mixer = {"kind": "attention", **SEQUENCE["attention"]["grouped"]}
    model = roughened(small(mixer, max_seq_len=700))
    rows = row_model(model, backend="torch")
    text = draw(300)
    rows.read(0, [text])
    room = []
    for token in draw(200, seed=1):
        rows.step([token])
        room.append(rows._caches[0].v.shape[3])
    assert len(set(room)) <= 4
    spare = [slots - n for n, slots in enumerate(room, start=301)]
    assert min(spare) >= 0 and max(spare) <= 80
    want = logits_after(model, [*text, *draw(200, seed=1), 7])
    torch.testing.assert_close(rows.step([7])[0], want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("window", [1, 3, 64])
def test_a_window_holds_no_more_than_the_window(window, backend):
    mixer = {"kind": "attention", **SEQUENCE["attention"]["plain"], "window": window}
    model = roughened(small(mixer, max_seq_len=600))
    rows = row_model(model, backend=backend)
    rows.read(0, [draw(50)])
    for token in draw(30):
        rows.step([token])
    for cache in rows._caches:
        if backend == "torch":
            assert max(cache.k.shape[2], cache.v.shape[3]) <= window
        else:  # keys in whole panels
            assert cache.v.shape[2] <= window
            assert cache.k.shape[2] == -(-cache.v.shape[2] // cache.k.shape[4])
    want = logits_after(model, [*draw(50), *draw(30), 7])
    torch.testing.assert_close(rows.step([7])[0], want, rtol=1e-9, atol=1e-9)


def test_caches_grow_by_doubling(backend):
    """Tokens cost no copy of everything before them, except a few times."""
    mixer = {"kind": "attention", **SEQUENCE["attention"]["plain"]}
    rows = row_model(roughened(small(mixer, max_seq_len=2000)), backend=backend)
    room = []
    for n_tokens in range(1, 2001):
        rows.reserve(1, n_tokens)
        room.append((rows._caches[0].k if backend == "torch" else rows._caches[0].v).shape[2])
    assert sorted(set(room)) == [256, 512, 1024, 2000]
    assert all(n_slots >= n for n, n_slots in enumerate(room, start=1))


# --- parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 5), (300, 200), (200, 300)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n_rows", [1, 2, 4, 9])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_product_is_the_linear_map(shape, dtype, n_rows, with_bias):
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=g).to(dtype)
    bias = torch.randn(shape[0], generator=g).to(dtype) if with_bias else None
    x, stream = (
        torch.randn(n_rows, shape[1], generator=g),
        torch.randn(n_rows, shape[0], generator=g),
    )
    if dtype == torch.float64:
        x, stream = x.double(), stream.double()
    product = Product(weight, bias)
    want = torch.nn.functional.linear(x.to(dtype), weight, bias)
    # Sums of up to 300 products in another order; bfloat16 has 8 bits.
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-12, torch.bfloat16: 0.2}[dtype]
    torch.testing.assert_close(product(x), want, rtol=tolerance, atol=tolerance)
    total = product.add_to(stream, x)
    assert total.dtype == stream.dtype
    torch.testing.assert_close(
        total, stream + want.to(stream.dtype), rtol=tolerance, atol=tolerance
    )


def test_a_mask_shows_the_slots_that_are_filled():
    rows = Rows(torch.tensor([0, 2, 9]), 10, None, RopeTables())
    shown = (rows.mask(4)[:, 0, 0] == 0).tolist()
    assert shown == [[True, False, False, False], [True, True, True, False], [True] * 4]
    assert Rows(torch.tensor([3, 3]), 4, 3, RopeTables()).mask(4) is None
    assert Rows(torch.tensor([1]), 2, 1, RopeTables()).mask(4) is not None
