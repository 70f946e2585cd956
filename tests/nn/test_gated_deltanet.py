"""The Gated DeltaNet mixer: causal, stepwise equal to parallel, sealed documents, true formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from mixlab.core.config import decode
from mixlab.core.errors import BackendError, ConfigError
from mixlab.nn.norm import GatedRMSNorm
from mixlab.nn.sequence_mixers.gated_deltanet import GatedDeltaNetConfig, GatedDeltaNetState
from mixlab.ops import gated_delta_rule
from mixlab.ops.gated_delta_rule import kernels
from mixlab.ops.packing import Packing

D_MODEL = 12
VARIANTS = {
    "default": {"n_heads": 2, "head_dim": 4},
    "grouped": {"n_heads": 2, "n_v_heads": 4, "head_dim": 4},
    "wide values": {"n_heads": 2, "head_dim": 4, "v_head_dim": 6},
    "negative eigenvalues": {"n_heads": 2, "head_dim": 4, "allow_neg_eigval": True},
    "DeltaNet": {"n_heads": 2, "head_dim": 4, "decay": "none", "output_gate": False},
    "no convolution": {"n_heads": 2, "head_dim": 4, "conv_size": 0},
    "one tap": {"n_heads": 2, "head_dim": 4, "conv_size": 1},
    "recurrent": {"n_heads": 2, "head_dim": 4, "backend": "recurrent"},
}


@pytest.fixture(params=VARIANTS)
def mixer(request):
    torch.manual_seed(0)
    return GatedDeltaNetConfig(**VARIANTS[request.param]).build(D_MODEL).double()


def make_x(n_tokens, n_batch=2):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n_batch, n_tokens, D_MODEL, generator=g, dtype=torch.float64)


def empty(mixer, n_batch=2):
    return mixer.initial_state(n_batch, torch.device("cpu"), torch.float64)


def test_is_causal(mixer):
    """Exactly zero gradient to every later input, over a chunk boundary too."""
    x = make_x(70, n_batch=1).requires_grad_()
    mixer(x).y[0, 40].sum().backward()
    assert x.grad[0, :41].any(dim=-1).all(), "some earlier input has no influence"
    assert not x.grad[0, 41:].any(), "a later input has influence"


def test_token_by_token_equals_all_at_once(mixer):
    x = make_x(70)
    whole = mixer(x)
    assert whole.state is None
    state, steps = empty(mixer), []
    for piece in x.split([1, 1, 2, 1, 60, 1, 1, 3], dim=1):
        y, state = mixer(piece, state)
        steps.append(y)
    # Rounding of float64, with chunks cut elsewhere.
    torch.testing.assert_close(torch.cat(steps, dim=1), whole.y, rtol=1e-9, atol=1e-11)


def test_state_is_used_and_has_the_size_that_is_claimed(mixer):
    x, fresh = make_x(9), empty(mixer)
    _, state = mixer(x, fresh)
    assert isinstance(state, GatedDeltaNetState)
    assert [z.shape for z in state] == [z.shape for z in fresh]
    n_bytes = sum(z[0].numel() * z.element_size() for z in mixer.float().initial_state(
        2, torch.device("cpu"), torch.float32
    ))  # fmt: skip
    assert mixer.cfg.state_bytes(D_MODEL, 9, 4) == mixer.cfg.state_bytes(D_MODEL, 9000, 4)
    assert mixer.cfg.state_bytes(D_MODEL, 9, 4) == n_bytes


def test_documents_do_not_leak(mixer):
    """Packed equals alone, and the gradient across the boundary is exactly zero."""
    x = make_x(80, n_batch=1).requires_grad_()
    ids = torch.tensor([[0] * 5 + [1] * 2 + [2] * 63 + [3] * 10])
    packed = mixer(x, packing=Packing(ids)).y
    for part in (slice(0, 5), slice(5, 7), slice(7, 70), slice(70, 80)):
        alone = mixer(x[:, part]).y
        torch.testing.assert_close(packed[:, part], alone, rtol=1e-9, atol=1e-11)
    packed[:, 7:70].sum().backward()
    assert x.grad[:, 7:70].any(dim=-1).all()
    assert not x.grad[:, :7].any() and not x.grad[:, 70:].any()


def test_rows_do_not_influence_each_other(mixer):
    x = make_x(20, n_batch=3)
    y = mixer(x).y
    x[1] = 100.0
    changed = mixer(x).y
    assert torch.equal(changed[[0, 2]], y[[0, 2]]) and not torch.equal(changed[1], y[1])


def test_every_parameter_gets_a_gradient(mixer):
    mixer(make_x(20)).y.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in mixer.parameters())


def test_parameter_formula_matches_the_module(mixer):
    assert mixer.cfg.n_params(D_MODEL) == sum(p.numel() for p in mixer.parameters())


def test_flops_formula_by_hand():
    cfg = GatedDeltaNetConfig(n_heads=2, n_v_heads=4, head_dim=3)
    # q 6, k 6, v 12, gate 12, a 4, b 4, o 12 columns of 10 inputs; 3 products of 3 x 3 in 4 heads.
    assert cfg.flops_per_token(10, 128) == 2 * (10 * 56 + 3 * 4 * 9)
    assert cfg.flops_per_token(10, 128) == cfg.flops_per_token(10, 4096)


def test_initial_decay_is_that_of_mamba2():
    mixer = GatedDeltaNetConfig(n_heads=64, head_dim=2).build(D_MODEL)
    a, dt = mixer.A_log.detach().exp(), F.softplus(mixer.dt_bias.detach())
    assert a.min() >= 1 and a.max() <= 16 and a.std() > 2
    # The inverse of softplus is rounded to float32.
    assert dt.min() >= 1e-3 * (1 - 1e-3) and dt.max() <= 1e-1 * (1 + 1e-3)
    assert math.log(dt.max() / dt.min()) > 3


def test_beta_is_doubled_for_negative_eigenvalues():
    """With beta at its limit and one repeated input, the memory flips its sign or is kept."""
    outs = []
    for allow in (False, True):
        torch.manual_seed(0)
        tree = {"n_heads": 1, "head_dim": 4, "conv_size": 0, "decay": "none"}
        cfg = GatedDeltaNetConfig(**tree, allow_neg_eigval=allow, output_gate=False)
        mixer = cfg.build(D_MODEL).double()
        x = torch.ones(1, 3, D_MODEL, dtype=torch.float64)
        mixer.b_proj.weight.data.fill_(100.0)
        _, state = mixer(x, empty(mixer, 1))
        _, after_two = mixer(x[:, :2], empty(mixer, 1))
        outs.append((after_two.memory.norm().item(), state.memory.norm().item()))
    (two, three), (flipped, back) = outs
    assert two == pytest.approx(three, rel=1e-5) and two > 0
    # v, then 2 v - v ...: twice the value after an odd count, nothing after an even one.
    assert flipped < 1e-4 * back and back == pytest.approx(2 * three, rel=1e-5)


def test_gated_norm_by_hand():
    norm = GatedRMSNorm(2, eps=0.0)
    norm.weight.data = torch.tensor([1.0, 2.0])
    y = norm(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 1.0]))
    # rms of (3, 4) is sqrt(12.5); silu(0) = 0 and silu(1) = 0.731058...
    torch.testing.assert_close(y, torch.tensor([0.0, 2 * 4 / 12.5**0.5 * 0.7310586]))


def test_autocast_gives_half_precision_near_the_truth():
    torch.manual_seed(0)
    mixer = GatedDeltaNetConfig(n_heads=2, head_dim=8).build(D_MODEL)
    x = make_x(70).to(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer(x).y
    assert y.dtype == torch.bfloat16
    want = mixer(x).y
    # A few roundings of 8 bits each, relative to the size of outputs.
    assert (y - want).abs().max() < 0.05 * want.abs().max()


@pytest.mark.parametrize(
    ("asked", "whole", "prompt", "token"),
    [
        ("auto", "flash_qla", "triton", "recurrent"),
        ("flash_qla", "flash_qla", "triton", "recurrent"),
        ("triton", "triton", "triton", "recurrent"),
    ],
)
def test_prompts_and_tokens_take_kernels_of_their_own(monkeypatch, asked, whole, prompt, token):
    """On a machine made up by hand; training, a prompt after a state, a single token."""
    monkeypatch.setattr(kernels, "INSTALLED", {"flash_qla", "tilelang", "triton"})
    monkeypatch.setattr(gated_delta_rule, "INSTALLED", {"flash_qla", "tilelang", "triton"})
    monkeypatch.setattr(kernels, "TRITON", (3, 6, 0))
    monkeypatch.setattr(kernels, "_capability", lambda device: 9)
    monkeypatch.setattr(kernels, "_shared_memory", lambda device: 230_000)
    mixer = GatedDeltaNetConfig(n_heads=1, head_dim=128, backend=asked).build(D_MODEL)

    class Values:
        device, dtype = torch.device("cuda"), torch.bfloat16

        def __init__(self, n_tokens):
            self.shape = (2, n_tokens, 1, 128)

    assert mixer._backend(Values(9), is_continued=False) == whole
    assert mixer._backend(Values(9), is_continued=True) == prompt
    assert mixer._backend(Values(1), is_continued=True) == token


def test_backend_is_settled_by_device_and_refused_by_name():
    cpu = torch.device("cpu")
    cfg = GatedDeltaNetConfig(n_heads=2, head_dim=4)
    assert cfg.backend_for(cpu, torch.float32) == "chunked"
    mixer = GatedDeltaNetConfig(n_heads=2, head_dim=4, backend="fla").build(D_MODEL)
    with pytest.raises(BackendError, match="'fla' cannot run: the device is 'cpu'"):
        mixer(make_x(3).to(torch.float32))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"n_heads": 4, "n_v_heads": 6}, "n_v_heads = 6: expected a multiple of n_heads = 4"),
        ({"n_heads": 4, "n_v_heads": 6}, "nearest are 4 or 8"),
        ({"n_heads": 4, "n_v_heads": 2}, "smallest is 4"),
        ({"n_heads": 0}, "n_heads"),
        ({"n_heads": 2, "conv_size": -1}, "conv_size"),
        ({"n_heads": 2, "backend": "flaa"}, "Did you mean 'fla'"),
        ({"n_heads": 2, "decay": "none", "gated": True}, "gated"),
        (
            {"n_heads": 2, "backend": "flash_qla", "allow_neg_eigval": True},
            "backend = 'flash_qla': expected a kernel that takes beta above 1",
        ),
    ],
)
def test_bad_settings_are_explained(tree, message):
    with pytest.raises(ConfigError, match=message):
        decode(GatedDeltaNetConfig, {"head_dim": 4, **tree})
