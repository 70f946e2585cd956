"""Mixture of experts: the contract, the losses and figures, and balance by a bias."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from mixlab.core.config import decode
from mixlab.core.errors import ConfigError
from mixlab.nn.channel_mixers.moe import MoEConfig

D_MODEL = 8
BASE = {"n_experts": 4, "n_active_experts": 2, "d_expert": 6}
VARIANTS = {
    "softmax": {},
    "plain matrices": {"activation": "silu"},
    "not normalised": {"norm_topk_prob": False},
    "one active": {"norm_topk_prob": False, "n_active_experts": 1},
    "all active": {"n_active_experts": 4},
    "sigmoid with bias": {
        "scores": "sigmoid", "bias_update_rate": 0.001, "routed_scaling_factor": 2.5,
        "n_shared_experts": 2, "z_loss_weight": 0.001,
    },
    "gated shared expert": {"n_shared_experts": 1, "shared_expert_gate": True},
    "plain shared expert": {"n_shared_experts": 1, "activation": "silu"},
    "loop": {"backend": "loop"},
}  # fmt: skip


@pytest.fixture(params=VARIANTS)
def cfg(request):
    return MoEConfig(**{**BASE, **VARIANTS[request.param]})


def build(cfg, seed=0):
    torch.manual_seed(seed)
    return cfg.build(D_MODEL).double()


def tokens(batch=3, length=7, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, D_MODEL, generator=g, dtype=torch.float64)


def test_a_token_depends_on_nothing_but_itself(cfg):
    """Dropless: no token's output changes with its row, its batch mates or their number."""
    moe = build(cfg).eval()
    x = tokens()
    y = moe(x).y
    torch.testing.assert_close(y[1:2], moe(x[1:2]).y, rtol=1e-12, atol=1e-13)
    crowded = torch.cat([x[1:2], x[1:2, :1].expand(1, 30, -1)], dim=1)  # everyone wants the same
    torch.testing.assert_close(y[1:2], moe(crowded).y[:, :7], rtol=1e-12, atol=1e-13)
    x = x.requires_grad_()
    moe(x).y[1, 3].sum().backward()
    others = torch.ones(3, 7, dtype=torch.bool)
    others[1, 3] = False
    assert x.grad[1, 3].any() and not x.grad[others].any()


def test_gradient_reaches_every_parameter(cfg):
    moe = build(cfg)
    out = moe(tokens(4, 16))
    out.y.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in moe.parameters())


def test_backends_agree_with_all_gradients(cfg):
    x = tokens().requires_grad_()
    results = []
    for backend in ("loop", "grouped"):
        moe = build(cfg.model_copy(update={"backend": backend}))
        out = moe(x)
        loss = out.y.square().sum() + (0 if out.aux_loss is None else out.aux_loss)
        results.append([out.y, *torch.autograd.grad(loss, [x, *moe.parameters()])])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


def test_formulas_match_the_module(cfg):
    moe = build(cfg)
    assert cfg.n_params(D_MODEL) == sum(p.numel() for p in moe.parameters())
    routed = sum(p.numel() for p in moe.experts.parameters())
    unused = routed * (cfg.n_experts - cfg.n_active_experts) // cfg.n_experts
    assert cfg.n_active_params(D_MODEL) == cfg.n_params(D_MODEL) - unused
    assert cfg.flops_per_token(D_MODEL) == 2 * cfg.n_active_params(D_MODEL)


def test_experts_start_as_linear_layers_do():
    torch.manual_seed(0)
    moe = MoEConfig(n_experts=3, n_active_experts=1, d_expert=400, norm_topk_prob=False).build(100)
    for weight, std in ((moe.experts.gate_up_proj, 0.1), (moe.experts.down_proj, 0.05)):
        for expert in weight:  # 40,000 draws: the estimate is within 2 percent
            assert expert.std().item() == pytest.approx(std, rel=0.02)


def test_size_of_the_published_moe_model():
    """512 wide, 8 layers, 8 heads, 4 experts top-2 of width 2048, no biases: 100,688,384."""
    cfg = MoEConfig(n_experts=4, n_active_experts=2, d_expert=2048, activation="silu")
    rest = 4 * 512 * 512 + 2 * 512  # attention and two norms
    assert 49_152 * 512 + 8 * (cfg.n_params(512) + rest) + 512 == 100_688_384
    assert 49_152 * 512 + 8 * (cfg.n_active_params(512) + rest) + 512 == 67_133_952


# --- losses and figures -----------------------------------------------------------------------


def test_losses_and_figures_of_an_indifferent_router():
    moe = build(MoEConfig(**BASE, z_loss_weight=0.5, aux_loss_weight=0.1))
    moe.gate.weight.data.zero_()
    out = moe(tokens())
    assert out.metrics["aux_loss"].item() == pytest.approx(1.0)
    assert out.metrics["z_loss"].item() == pytest.approx(math.log(4) ** 2)
    assert out.aux_loss.item() == pytest.approx(0.1 + 0.5 * math.log(4) ** 2)
    assert out.metrics["routing_entropy"].item() == pytest.approx(math.log(4))
    assert out.metrics["routing_entropy_frac"].item() == pytest.approx(1.0)


def test_figures_of_a_collapsed_router():
    """Every token takes experts 1 and 2: two are dead and the load is twice the mean."""
    moe = build(MoEConfig(**BASE))
    moe.gate.weight.data.zero_()
    moe.gate.weight.data[1:3, 0] = torch.tensor([9.0, 8.0])
    x = tokens()
    x[..., 0] = 1.0
    metrics = moe(x).metrics
    assert metrics["expert_utilization"].tolist() == [0.0, 0.5, 0.5, 0.0]
    assert metrics["dead_experts"].item() == 2
    assert metrics["max_load"].item() == pytest.approx(2.0)
    assert not any(figure.requires_grad for figure in metrics.values())


def test_evaluation_adds_no_loss_and_no_noise():
    moe = build(MoEConfig(**BASE, router_noise_std=1.0))
    x = tokens()
    assert not torch.equal(moe(x).y, moe(x).y), "training draws noise"
    torch.manual_seed(3)
    first = moe(x).y
    torch.manual_seed(3)
    assert torch.equal(first, moe(x).y), "the same seed draws the same noise"
    moe.eval()
    out = moe(x)
    assert torch.equal(out.y, moe(x).y)
    assert out.aux_loss is None and out.metrics == {}


def test_no_loss_without_a_weight():
    assert build(MoEConfig(**BASE, aux_loss_weight=0.0))(tokens()).aux_loss is None


def test_route_tells_which_expert_each_token_takes():
    moe = build(MoEConfig(**BASE)).eval()
    x = tokens()
    routing = moe.route(x)
    want = (x.reshape(-1, D_MODEL) @ moe.gate.weight.T).topk(2).indices
    assert torch.equal(routing.indices, want)


def test_training_on_the_balance_loss_evens_the_load():
    torch.manual_seed(0)
    moe = MoEConfig(n_experts=8, n_active_experts=2, d_expert=4, aux_loss_weight=1.0).build(D_MODEL)
    x = torch.randn(4, 64, D_MODEL) + 1.0  # a common direction, which favours some experts
    before = moe(x).metrics["max_load"]
    optimizer = torch.optim.Adam([moe.gate.weight], lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        moe(x).aux_loss.backward()
        optimizer.step()
    after = moe(x).metrics["max_load"]
    assert before > 2.0 and after < 1.4


# --- balance by a bias ------------------------------------------------------------------------


def biased(**changes):
    settings = {"scores": "sigmoid", "bias_update_rate": 0.01, "aux_loss_weight": 0.0, **changes}
    torch.manual_seed(0)
    return MoEConfig(n_experts=8, n_active_experts=2, d_expert=4, **settings).build(D_MODEL)


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_the_bias_evens_the_load(scores):
    moe = biased(scores=scores)
    g = torch.Generator().manual_seed(0)
    loads = []
    for _ in range(150):
        metrics = moe(torch.randn(1, 512, D_MODEL, generator=g) + 1.0).metrics
        loads.append(metrics["max_load"].item())
        moe.update_balance()
    assert loads[0] > 2.0
    assert sum(loads[-20:]) / 20 < 1.25


def test_micro_batches_update_the_bias_as_one_batch_does():
    whole, parts = biased(), biased()
    x = torch.randn(4, 16, D_MODEL, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        whole(x)
        for row in x.split(1):
            parts(row)
        whole.update_balance()
        parts.update_balance()
        bias = whole.gate.e_score_correction_bias
        assert bias.any() and torch.equal(bias, parts.gate.e_score_correction_bias)


def test_activation_checkpointing_updates_the_bias_alike():
    plain, saving = biased(), biased()
    x = torch.randn(2, 16, D_MODEL, generator=torch.Generator().manual_seed(0)).requires_grad_()
    plain(x).y.sum().backward()
    torch.utils.checkpoint.checkpoint(
        lambda x: saving(x).y, x, use_reentrant=False
    ).sum().backward()
    plain.update_balance()
    saving.update_balance()
    bias = plain.gate.e_score_correction_bias
    assert bias.any() and torch.equal(bias, saving.gate.e_score_correction_bias)


def test_evaluation_never_moves_the_bias():
    moe = biased()
    x = tokens().to(torch.float32)
    moe.eval()(x)
    with torch.no_grad():
        moe.train()(x)
    moe.update_balance()
    assert not moe.gate.e_score_correction_bias.any()


def test_a_bias_survives_saving_and_goes_on_bit_for_bit():
    moe = biased()
    x = tokens().to(torch.float32)
    moe(x)
    moe.update_balance()
    resumed = biased()
    resumed.load_state_dict(copy.deepcopy(moe.state_dict()))
    for model in (moe, resumed):
        model(x)
        model.update_balance()
    assert torch.equal(moe.gate.e_score_correction_bias, resumed.gate.e_score_correction_bias)


def test_the_bias_stays_wide_and_follows_the_module():
    moe = biased()
    moe.gate.e_score_correction_bias.fill_(0.001 + 1e-7)
    moe = moe.to(torch.bfloat16)
    assert moe.gate.weight.dtype == torch.bfloat16
    assert moe.gate.e_score_correction_bias.dtype == torch.float32
    assert moe.gate.e_score_correction_bias[0].item() == pytest.approx(0.001 + 1e-7, rel=1e-6)
    assert "e_score_correction_bias" in dict(moe.gate.named_buffers())
    assert set(moe.state_dict()) == {
        "gate.weight", "gate.e_score_correction_bias", "experts.gate_up_proj", "experts.down_proj",
    }  # fmt: skip
    assert moe(tokens().to(torch.bfloat16)).y.dtype == torch.bfloat16


def test_a_rate_of_zero_keeps_a_loaded_bias():
    moe = biased(bias_update_rate=0.0)
    moe.gate.e_score_correction_bias[2] = 5.0
    out = moe(tokens().to(torch.float32))
    assert out.metrics["expert_utilization"][2].item() == 0.5, "every token takes expert 2"
    moe.update_balance()
    assert moe.gate.e_score_correction_bias.tolist() == [0, 0, 5.0, 0, 0, 0, 0, 0]


# --- precision and bad input ------------------------------------------------------------------


def test_router_is_float32_under_autocast():
    moe = build(MoEConfig(**BASE)).to(torch.float32)
    x = tokens().to(torch.float32)
    want = F.linear(x.reshape(-1, D_MODEL), moe.gate.weight)
    with torch.autocast("cpu", torch.bfloat16):
        routing = moe.route(x)
        y = moe(x).y
    assert torch.equal(routing.logits, want)
    # Two products rounded to 8 bits of mantissa each.
    assert (y - moe(x).y).abs().max() < 0.05 * y.abs().max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_active_experts": 5}, r"n_active_experts = 5: expected at most n_experts = 4"),
        ({"n_active_experts": 1}, r"norm_topk_prob = True: expected false"),
        ({"shared_expert_gate": True}, r"shared_expert_gate = True: expected n_shared_experts"),
        ({"n_active_experts": 0}, r"n_active_experts = 0"),
        ({"n_experts": 1, "n_active_experts": 1}, r"n_experts = 1: expected at least 2.*kind=mlp"),
        ({"scores": "sigmoids"}, r"Did you mean 'sigmoid'"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        decode(MoEConfig, {**BASE, **change})
