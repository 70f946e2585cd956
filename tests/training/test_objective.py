"""One update: the loss is a mean over target tokens, however the tokens are cut."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from mixlab.core.config import decode
from mixlab.data.batch import IGNORE, Batch
from mixlab.nn.language_model import LanguageModelConfig, build_model
from mixlab.ops.packing import Packing
from mixlab.training.language_modelling import LanguageModelling, accumulate_gradients
from mixlab.training.objective import update
from mixlab.training.optimizers import AdamWConfig

MOE = {
    "kind": "moe", "n_experts": 4, "n_active_experts": 2, "d_expert": 8, "bias_update_rate": 0.25,
    "aux_loss_weight": 0.0,
}  # fmt: skip


class Pieces:
    """A loader that hands out given micro-batches, one after the other."""

    def __init__(self, batches):
        self._batches = list(batches)

    def batch(self, position, n):
        return self._batches[position]


def train_step(model, optimizer, batches, *, lr_factor, max_grad_norm, compute_dtype=None):
    objective = LanguageModelling(
        model, Pieces(batches), batch_size=len(batches), micro_batch_size=1,
        compute_dtype=compute_dtype,
    )  # fmt: skip
    return update(objective, optimizer, 0, lr_factor=lr_factor, max_grad_norm=max_grad_norm)


def build(channel=None, dtype=torch.float64):
    tree = {
        "vocab_size": 13, "d_model": 16, "n_layers": 2,
        "blocks": {"full": {
            "sequence_mixer": {"kind": "attention", "n_heads": 2, "head_dim": 8},
            "channel_mixer": channel or {"kind": "mlp", "d_ff": 24},
        }},
    }  # fmt: skip
    return build_model(decode(LanguageModelConfig, tree), 0).to(dtype)


def batch(rows=4, length=6):
    """Targets that are spread unevenly: all, few, one, none in a row."""
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(13, (rows, length), generator=g)
    targets = torch.randint(13, (rows, length), generator=g)
    targets[1, 2:], targets[2, 1:], targets[3] = IGNORE, IGNORE, IGNORE
    segments = torch.tensor([[0, 0, 1, 1, 1, 2]] * rows, dtype=torch.int32)
    return Batch(tokens, targets, segments)


def cut(whole, size):
    return whole.split([size] * (len(whole.tokens) // size))


def by_the_definition(model, whole):
    """PyTorch's mean over all targets of all rows at once, with its gradients."""
    logits = model(whole.tokens, None, Packing(whole.segments)).logits
    loss = F.cross_entropy(logits.flatten(0, 1), whole.targets.flatten(), ignore_index=IGNORE)
    return loss, torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_give_the_mean_over_tokens(size):
    """A mean of means would weigh the row with one target as much as the row with six."""
    model, whole = build(), batch()
    want, grads = by_the_definition(model, whole)
    metrics = accumulate_gradients(model, cut(whole, size))
    # The same float64 sums in another order.
    assert_close(metrics.loss_nats, want.detach(), rtol=1e-11, atol=1e-12)
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert_close(parameter.grad, grad, rtol=1e-10, atol=1e-13)
    norm = torch.cat([grad.flatten() for grad in grads]).norm()
    assert_close(metrics.grad_norm, norm, rtol=1e-10, atol=1e-13)
    assert metrics.n_targets == whole.n_targets() == 6 + 2 + 1


@pytest.mark.parametrize("size", [1, 2])
def test_an_auxiliary_loss_is_added_once(size):
    """Weighted by tokens, so that more micro-batches do not make it heavier."""
    channel = {**MOE, "bias_update_rate": None, "aux_loss_weight": 0.0, "z_loss_weight": 0.1}
    whole = batch()._replace(targets=batch().tokens)  # the z-loss is a plain mean over tokens
    results = []
    for pieces in (cut(whole, 4), cut(whole, size)):
        model = build(channel)
        metrics = accumulate_gradients(model, pieces)
        results.append([metrics.aux_loss, *(p.grad for p in model.parameters())])
    for a, b in zip(*results, strict=True):
        assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_experts_are_balanced_once_per_update():
    """The selection bias moves by its rate after the optimizer, and the counts begin again."""
    model = build(MOE)
    optimizer = AdamWConfig().build(model.named_parameters())
    train_step(model, optimizer, cut(batch(), 1), lr_factor=1.0, max_grad_norm=1.0)
    for block in model.blocks:
        gate = block.channel_mixer.gate
        moved = gate.e_score_correction_bias.abs().max()
        assert moved == 0.25  # by one update, and not by one per micro-batch
        assert not gate.tokens_per_expert.any()


def test_clipping_scales_the_whole_gradient():
    """SGD by hand: the step has the norm that was allowed, the figure the one before."""

    class PlainDescent:
        def __init__(self, model):
            self.model = model

        def step(self, factor, clip):
            with torch.no_grad():
                for p in self.model.parameters():
                    p -= factor * clip * p.grad

        def zero_grad(self):
            self.model.zero_grad(set_to_none=True)

    model, whole = build(), batch()
    before = [p.detach().clone() for p in model.parameters()]
    _, grads = by_the_definition(model, whole)
    norm = float(torch.cat([g.flatten() for g in grads]).norm())
    limit = norm / 3
    metrics = train_step(model, PlainDescent(model), [whole], lr_factor=2.0, max_grad_norm=limit)
    assert float(metrics.grad_norm) == pytest.approx(norm, rel=1e-10)
    for p, old, grad in zip(model.parameters(), before, grads, strict=True):
        # PyTorch adds 1e-6 to the norm before it divides.
        clipped = grad * limit / (norm + 1e-6)
        assert_close(p.detach(), old - 2.0 * clipped, rtol=1e-10, atol=1e-12)
        assert p.grad is None


def test_a_small_gradient_is_not_scaled_up():
    model = build()
    _, grads = by_the_definition(model, batch())
    optimizer = AdamWConfig().build(model.named_parameters())
    optimizer.zero_grad = lambda: None
    train_step(model, optimizer, [batch()], lr_factor=1.0, max_grad_norm=1e9)
    for p, grad in zip(model.parameters(), grads, strict=True):
        assert_close(p.grad, grad, rtol=1e-9, atol=1e-13)


def test_bf16_products_keep_float32_weights():
    model = build(dtype=torch.float32)
    exact = build(dtype=torch.float32)
    want = accumulate_gradients(exact, [batch()])
    optimizer = AdamWConfig().build(model.named_parameters())
    dtypes = set()
    handle = model.blocks[0].channel_mixer.down_proj.register_forward_hook(
        lambda module, args, out: dtypes.add(out.dtype)
    )
    metrics = train_step(
        model, optimizer, [batch()], lr_factor=1.0, max_grad_norm=None,
        compute_dtype=torch.bfloat16,
    )  # fmt: skip
    handle.remove()
    assert dtypes == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {t.dtype for t in optimizer.state_tensors().values()} == {torch.float32}
    assert metrics.loss_nats.dtype == torch.float32
    # Eight bits of mantissa in the products, averaged over the targets.
    assert float(metrics.loss_nats) == pytest.approx(float(want.loss_nats), abs=0.02)


def test_no_targets_in_a_micro_batch_are_harmless():
    model, whole = build(), batch()
    want, _ = by_the_definition(model, whole)
    metrics = accumulate_gradients(model, cut(whole, 1))  # its last row has none
    assert metrics.loss_nats.isfinite() and float(metrics.loss_nats) == pytest.approx(float(want))
    assert all(p.grad.isfinite().all() for p in model.parameters())
