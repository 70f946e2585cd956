"""The contract of a channel mixer, run on every entry of the registry."""

import pytest
import torch
from tiny_mixers import CHANNEL, D_MODEL, cases

from mixlab.nn.channel_mixers import CHANNEL_MIXERS


@pytest.fixture(params=cases(CHANNEL), ids=" ".join)
def cfg(request):
    kind, variant = request.param
    return CHANNEL_MIXERS[kind](**CHANNEL[kind][variant])


@pytest.fixture
def mixer(cfg):
    torch.manual_seed(0)
    return cfg.build(D_MODEL).double()


def draw(*shape):
    g = torch.Generator().manual_seed(1)
    return torch.randn(*shape, D_MODEL, generator=g, dtype=torch.float64)


def test_every_entry_is_tried():
    assert set(CHANNEL) >= set(CHANNEL_MIXERS), "add tiny sizes for the new mixer"


def test_each_token_by_itself(mixer):
    mixer.eval()
    x = draw(2, 6)
    y = mixer(x).y
    assert y.shape == x.shape
    shuffled = x.flatten(0, 1)[torch.arange(11, -1, -1)].view(3, 4, D_MODEL)
    back = mixer(shuffled).y.flatten(0, 1)[torch.arange(11, -1, -1)].view_as(x)
    torch.testing.assert_close(back, y, rtol=1e-11, atol=1e-12)


def test_gradient_reaches_every_parameter(mixer):
    out = mixer(draw(4, 16))
    out.y.square().sum().backward()
    missing = [name for name, p in mixer.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing


def test_parameter_formulas(cfg, mixer):
    total = sum(p.numel() for p in mixer.parameters())
    assert cfg.n_params(D_MODEL) == total >= cfg.n_active_params(D_MODEL) > 0


def test_figures_are_detached_and_evaluation_adds_no_loss(mixer):
    out = mixer(draw(2, 6))
    assert not any(value.requires_grad for value in out.metrics.values())
    assert mixer.eval()(draw(2, 6)).aux_loss is None
