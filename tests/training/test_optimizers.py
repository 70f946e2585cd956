"""Optimizers against torch's own, their grouping rule, and exact state restore."""

import copy

import pytest
import torch
from torch import Tensor, nn

from mixlab.core.config import Config, decode, to_tree
from mixlab.core.errors import BackendError, CheckpointError
from mixlab.training.optimizers import OPTIMIZERS, AdamWConfig, MuonConfig
from mixlab.training.optimizers.groups import decays, is_hidden_matrix
from mixlab.training.optimizers.muon import orthogonalise

SHAPES = {
    "embed_tokens.weight": (16, 8),
    "blocks.0.mixer.q_proj.weight": (8, 8),
    "blocks.0.mixer.k_proj.weight": (4, 8),
    "blocks.0.mixer.dt_bias": (4,),
    "blocks.0.mlp.up_proj.weight": (12, 8),
    "blocks.1.mlp.up_proj.weight": (12, 8),
    "blocks.1.mlp.down_proj.weight": (8, 12),
    "blocks.1.experts.gate_proj": (3, 12, 8),
    "norm.weight": (8,),
}


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    gen = torch.Generator().manual_seed(0)
    return {
        name: nn.Parameter(torch.randn(shape, generator=gen).to(dtype))
        for name, shape in SHAPES.items()
    }


def set_grads(params: dict[str, nn.Parameter], seed: int) -> None:
    gen = torch.Generator().manual_seed(seed)
    for p in params.values():
        p.grad = torch.randn(p.shape, generator=gen).to(p.dtype)


@pytest.mark.parametrize(
    ("name", "shape", "decay", "muon"),
    [
        ("embed_tokens.weight", (16, 8), False, False),
        ("lm_head.weight", (16, 8), True, False),
        ("blocks.0.mixer.q_proj.weight", (8, 8), True, True),
        ("blocks.0.mixer.q_proj.bias", (8,), False, False),
        ("blocks.0.mixer.q_norm.weight", (4, 8), False, False),
        ("blocks.0.mixer.q_conv1d.weight", (8, 1, 4), True, False),
        ("blocks.0.mixer.conv.weight", (8, 2, 4), True, False),
        ("blocks.0.mixer.A_log", (4, 16), False, False),
        ("blocks.0.mixer.dt_bias", (4, 2), False, False),
        ("blocks.0.mixer.D", (4, 2), False, False),
        ("blocks.0.moe.gate.weight", (4, 8), True, False),
        ("blocks.0.moe.router.weight", (4, 8), True, False),
        ("blocks.0.mlp.gate_proj.weight", (12, 8), True, True),
        ("blocks.0.moe.experts.gate_proj", (4, 12, 8), True, True),
        ("blocks.0.moe.experts.bias", (4, 12), False, False),
        ("blocks.0.shared_gate_proj.weight", (1, 8), True, False),
        ("registers.weight", (0, 96), True, False),  # a refiner may have none
        ("scale", (), False, False),
    ],
)
def test_groups(name: str, shape: tuple[int, ...], decay: bool, muon: bool) -> None:
    assert decays(name, shape) is decay
    assert is_hidden_matrix(name, shape) is muon


def test_adamw_equals_torchs_plain_adamw() -> None:
    ours, theirs = parameters(torch.float64), parameters(torch.float64)
    cfg = AdamWConfig(lr=0.01, weight_decay=0.3)
    optimizer = cfg.build(ours.items())
    plain = [
        torch.optim.AdamW(
            [p], lr=0.01, betas=cfg.betas, eps=cfg.eps,
            weight_decay=0.3 if decays(name, p.shape) else 0.0, foreach=False, fused=False,
        )
        for name, p in theirs.items()
    ]  # fmt: skip
    for step in range(5):
        set_grads(ours, step)
        set_grads(theirs, step)
        optimizer.step(0.5 + step / 10)
        for other in plain:
            other.param_groups[0]["lr"] = 0.01 * (0.5 + step / 10)
            other.step()
    for name in ours:  # float64: the order of operations differs between the two kernels
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("scale", ["match_rms_adamw", "original"])
def test_muon_equals_torchs_muon_matrix_by_matrix(scale: str, nesterov: bool) -> None:
    ours, theirs = parameters(), parameters()
    cfg = MuonConfig(lr=0.02, weight_decay=0.2, scale=scale, nesterov=nesterov)
    optimizer = cfg.build(ours.items())
    settings = {
        "lr": 0.02, "weight_decay": 0.2, "momentum": 0.95, "nesterov": nesterov,
        "adjust_lr_fn": scale,
    }  # fmt: skip
    checked = {n: p for n, p in theirs.items() if is_hidden_matrix(n, p.shape)}
    # torch's takes 2-D only, so a stack is given to it as separate matrices that share memory.
    pieces = {
        name: [nn.Parameter(p.detach())] if p.ndim == 2 else [nn.Parameter(m) for m in p.detach()]
        for name, p in checked.items()
    }
    other = torch.optim.Muon([m for ms in pieces.values() for m in ms], **settings)
    start = {name: p.detach().clone() for name, p in checked.items()}
    for step in range(4):
        set_grads(ours, step)
        set_grads(theirs, step)
        for name, p in checked.items():
            grads = [p.grad] if p.ndim == 2 else list(p.grad)
            for matrix, grad in zip(pieces[name], grads, strict=True):
                matrix.grad = grad
        optimizer.step(1.0)
        other.step()
    for name in checked:
        # Both iterate in bfloat16 (8 bits), in another order of sums: the *updates* may differ by
        # a few of its rounding steps, 2**-8 each, relative to their size.
        ours_moved, theirs_moved = ours[name] - start[name], theirs[name] - start[name]
        error = (ours_moved - theirs_moved).norm() / theirs_moved.norm()
        assert error < 0.02, (name, float(error))


@pytest.mark.parametrize("shape", [(3, 5, 9), (3, 9, 5), (2, 6, 6), (1, 2, 40)])
def test_orthogonalise_against_the_singular_value_form_in_float64(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    s = s / torch.linalg.norm(x, dim=(-2, -1)).unsqueeze(-1)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    expected = u @ torch.diag_embed(s) @ vt
    torch.testing.assert_close(orthogonalise(x, 5), expected, rtol=1e-10, atol=1e-12)


def test_a_batch_limit_does_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(7, 4, 6, dtype=torch.float64)
    whole = orthogonalise(x, 5)
    monkeypatch.setattr("mixlab.training.optimizers.muon._CPU_BATCH_ELEMENTS", 48)
    # The matrix library may sum in another order for another batch size.
    torch.testing.assert_close(orthogonalise(x, 5), whole, rtol=1e-12, atol=1e-14)
    ours = parameters(torch.float64)
    optimizer = MuonConfig(ns_dtype="float32").build(ours.items())
    set_grads(ours, 0)
    optimizer.step(1.0)
    assert all(torch.isfinite(p).all() for p in ours.values())


def test_muon_gives_the_rest_to_adamw() -> None:
    ours, theirs = parameters(), parameters()
    cfg = MuonConfig(rest=AdamWConfig(lr=0.03, weight_decay=0.05))
    mixed, plain = cfg.build(ours.items()), cfg.rest.build(theirs.items())
    for step in range(3):
        set_grads(ours, step)
        set_grads(theirs, step)
        mixed.step(0.7)
        plain.step(0.7)
    for name, p in ours.items():
        assert torch.equal(p, theirs[name]) is not is_hidden_matrix(name, p.shape)


def test_zero_gradients_leave_a_zero_momentum_matrix_to_decay_alone() -> None:
    params = {"q_proj.weight": nn.Parameter(torch.ones(4, 4))}
    optimizer = MuonConfig(lr=0.5, weight_decay=0.2).build(params.items())
    params["q_proj.weight"].grad = torch.zeros(4, 4)
    optimizer.step(1.0)
    torch.testing.assert_close(params["q_proj.weight"].detach(), torch.full((4, 4), 0.9))


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_restored_state_continues_bit_for_bit(kind: str) -> None:
    ours = parameters()
    optimizer = OPTIMIZERS[kind]().build(ours.items())
    for step in range(3):
        set_grads(ours, step)
        optimizer.step(1.0)
    saved = {key: t.clone() for key, t in optimizer.state_tensors().items()}
    assert all(t.dtype == torch.float32 for t in saved.values())
    other = {name: nn.Parameter(p.detach().clone()) for name, p in ours.items()}
    # Another order of construction must not matter.
    restored = OPTIMIZERS[kind]().build(reversed(other.items()))
    restored.load_state_tensors(saved)
    for step in range(3, 6):
        for params, opt in ((ours, optimizer), (other, restored)):
            set_grads(params, step)
            opt.step(0.5)
    assert all(torch.equal(p, other[name]) for name, p in ours.items())
    ours_state, other_state = optimizer.state_tensors(), restored.state_tensors()
    assert ours_state.keys() == other_state.keys()
    assert all(torch.equal(t, other_state[key]) for key, t in ours_state.items())


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_state_exists_and_restores_before_the_first_update(kind: str) -> None:
    ours = parameters()
    optimizer = OPTIMIZERS[kind]().build(ours.items())
    fresh = {key: t.clone() for key, t in optimizer.state_tensors().items()}
    assert all(not t.any() for t in fresh.values())
    set_grads(ours, 0)
    optimizer.step(1.0)
    optimizer.load_state_tensors(fresh)
    assert all(not t.any() for t in optimizer.state_tensors().values())


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_a_mismatch_names_the_key_and_changes_nothing(kind: str) -> None:
    optimizer = OPTIMIZERS[kind]().build(parameters().items())
    good = {key: torch.ones_like(t) for key, t in optimizer.state_tensors().items()}
    key = next(iter(good))

    def altered(change: dict[str, Tensor | None]) -> dict[str, Tensor]:
        return {k: t for k, t in (good | change).items() if t is not None}

    bad_states: list[dict[str, Tensor]] = [
        altered({key: None}),
        altered({key: torch.ones(2, 3, 4, 5)}),
        altered({key: good[key].double()}),
        altered({"muon/momentum/elsewhere": torch.ones(1)}),
    ]
    for state, named in zip(bad_states, [key, key, key, "muon/momentum/elsewhere"], strict=True):
        with pytest.raises(CheckpointError, match=named):
            optimizer.load_state_tensors(state)
    assert all(not t.any() for t in optimizer.state_tensors().values())


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_a_parameter_without_gradient_stays(kind: str) -> None:
    ours = parameters()
    optimizer = OPTIMIZERS[kind]().build(ours.items())
    before = copy.deepcopy(ours)
    set_grads(ours, 0)
    frozen = ["blocks.0.mlp.up_proj.weight", "norm.weight", "embed_tokens.weight"]
    for name in frozen:
        ours[name].grad = None
    optimizer.step(1.0)
    for name, p in ours.items():
        assert torch.equal(p, before[name]) is (name in frozen), name
    optimizer.zero_grad()
    assert all(p.grad is None for p in ours.values())


def test_optimizers_are_chosen_by_kind_and_round_trip() -> None:
    class Holder(Config):
        optimizer: OPTIMIZERS.annotation()

    tree = {"optimizer": {"kind": "muon", "lr": 0.02, "rest": {"lr": 0.01, "betas": [0.8, 0.9]}}}
    holder = decode(Holder, tree)
    assert holder.optimizer.rest.betas == (0.8, 0.9)
    assert decode(Holder, to_tree(holder)) == holder


def test_a_kernel_that_was_asked_for_by_name_is_never_swapped() -> None:
    with pytest.raises(BackendError, match=r"'triton' cannot run: the device is 'cpu'"):
        AdamWConfig(backend="triton").build(parameters().items())
    with pytest.raises(BackendError, match="triton"):
        MuonConfig(rest={"backend": "triton"}).build(parameters().items())
