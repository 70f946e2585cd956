"""Routing against hand cases, and the two ways to run experts against each other."""

import math

import pytest
import torch
import torch.nn.functional as F

from mixlab.core.errors import BackendError
from mixlab.ops.moe import (
    balance_loss,
    balanced_bias,
    count_tokens,
    experts,
    route,
    z_loss,
)

N_EXPERTS, D, WIDTH = 5, 6, 7  # odd on purpose: nothing may depend on alignment


def make_inputs(indices, activation, seed=0):
    """Random float64 tokens and experts for the given choice, all asking for gradients."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()

    n, k = indices.shape
    up_width = 2 * WIDTH if activation == "swiglu" else WIDTH
    return {
        "x": draw(n, D), "weights": draw(n, k), "up": draw(N_EXPERTS, up_width, D),
        "down": draw(N_EXPERTS, D, WIDTH), "indices": indices, "activation": activation,
    }  # fmt: skip


def run(inputs, backend):
    y = experts(**inputs, backend=backend)
    leaves = [inputs[name] for name in ("x", "weights", "up", "down")]
    g = torch.Generator().manual_seed(9)
    weight = torch.randn(y.shape, generator=g, dtype=y.dtype)
    return [y, *torch.autograd.grad((y * weight).sum(), leaves)]


CHOICES = {
    "spread": torch.tensor([[0, 1], [2, 3], [4, 0], [1, 2], [3, 4], [0, 2], [4, 1]]),
    "some without a token": torch.tensor([[0, 3], [3, 0], [0, 3]]),
    "one with a single token": torch.tensor([[0, 1], [1, 4], [0, 1]]),
    "all to one": torch.tensor([[2], [2], [2], [2]]),
    "a single token": torch.tensor([[3, 1]]),
    "every expert": torch.tensor([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]]),
}


@pytest.mark.parametrize("activation", ["swiglu", "silu"])
@pytest.mark.parametrize("choice", CHOICES)
def test_grouped_equals_the_loop_with_all_gradients(choice, activation):
    inputs = make_inputs(CHOICES[choice], activation)
    for got, want in zip(run(inputs, "grouped"), run(inputs, "loop"), strict=True):
        # The same float64 products, summed in another order.
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_loop_is_the_weighted_sum_of_dense_experts():
    inputs = make_inputs(CHOICES["spread"], "silu")
    x, up, down = inputs["x"], inputs["up"], inputs["down"]
    outputs = torch.einsum("edf,enf->end", down, F.silu(torch.einsum("efd,nd->enf", up, x)))
    want = torch.stack(
        [
            sum(inputs["weights"][n, j] * outputs[inputs["indices"][n, j], n] for j in range(2))
            for n in range(x.shape[0])
        ]
    )
    torch.testing.assert_close(experts(**inputs, backend="loop"), want, rtol=1e-12, atol=1e-12)


def test_gradients_of_grouped_match_finite_differences():
    inputs = make_inputs(CHOICES["some without a token"], "swiglu")
    names = ("x", "weights", "up", "down")

    def f(*leaves):
        return experts(**{**inputs, **dict(zip(names, leaves, strict=True))}, backend="grouped")

    assert torch.autograd.gradcheck(f, [inputs[name] for name in names])


@pytest.mark.parametrize("backend", ["grouped", "loop"])
def test_autocast_runs_the_products_in_half_precision(backend):
    inputs = make_inputs(CHOICES["spread"], "swiglu")
    for name in ("x", "weights", "up", "down"):
        inputs[name] = inputs[name].detach().float().requires_grad_()
    exact = experts(**inputs, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        y = experts(**inputs, backend=backend)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert inputs["up"].grad.dtype == torch.float32
    # Two products of sums of at most 7 terms of size ~1, in 8 bits of mantissa.
    assert (y - exact).abs().max() < 0.05 * exact.abs().max()


def test_softmax_over_all_then_normalised_is_softmax_over_the_chosen():
    logits = torch.tensor([[1.0, 3.0, 0.0, 2.0]], dtype=torch.float64)
    out = route(logits=logits, n_active=2, scores="softmax", normalize=True)
    assert out.indices.tolist() == [[1, 3]]
    e = math.e
    want = torch.tensor([[e / (1 + e), 1 / (1 + e)]], dtype=torch.float64)
    torch.testing.assert_close(out.weights, want)
    plain = route(logits=logits, n_active=2, scores="softmax", normalize=False, scaling=2.5)
    torch.testing.assert_close(plain.weights, 2.5 * logits.softmax(-1)[:, [1, 3]])


def test_a_selection_bias_changes_the_choice_and_not_the_weights():
    logits = torch.tensor([[2.0, 1.0, -1.0]])
    bias = torch.tensor([0.0, 0.0, 1.0])
    out = route(logits=logits, n_active=1, scores="sigmoid", normalize=False, selection_bias=bias)
    assert out.indices.tolist() == [[2]]
    torch.testing.assert_close(out.weights, torch.sigmoid(torch.tensor([[-1.0]])))
    torch.testing.assert_close(out.probs.sum(-1), torch.ones(1))


def test_weights_stay_finite_when_all_sigmoid_scores_underflow():
    logits = torch.full((1, 4), -200.0)
    out = route(logits=logits, n_active=2, scores="sigmoid", normalize=True)
    assert out.weights.isfinite().all() and out.probs.isfinite().all()


def test_balance_loss_is_one_when_even_and_n_experts_when_collapsed():
    even = torch.full((8, 4), 0.25)
    counts = torch.tensor([4, 4, 4, 4])  # 8 tokens, top-2
    assert balance_loss(even, counts).item() == pytest.approx(1.0)
    collapsed = torch.tensor([[1.0, 0, 0, 0]]).expand(8, 4)
    assert balance_loss(collapsed, torch.tensor([8, 0, 0, 0])).item() == pytest.approx(4.0)


def test_balance_loss_gradient_is_the_share_of_each_expert():
    probs = torch.full((4, 2), 0.5, requires_grad=True)
    balance_loss(probs, torch.tensor([3, 1])).backward()
    # E * share_e / N = 2 * (3/4, 1/4) / 4
    torch.testing.assert_close(probs.grad, torch.tensor([[0.375, 0.125]]).expand(4, 2))


def test_z_loss_of_equal_logits_is_known():
    assert z_loss(torch.zeros(3, 4)).item() == pytest.approx(math.log(4) ** 2)


def test_bias_moves_by_the_rate_towards_the_mean_load():
    bias = balanced_bias(torch.zeros(3), torch.tensor([5, 1, 3]), rate=0.1)
    torch.testing.assert_close(bias, torch.tensor([-0.1, 0.1, 0.0]))


def test_counts_are_exact():
    indices = torch.randint(0, 7, (50, 3), generator=torch.Generator().manual_seed(0))
    assert torch.equal(count_tokens(indices, 9), indices.flatten().bincount(minlength=9))


@pytest.mark.gpu
def test_grouped_kernel_is_as_close_to_exact_as_the_loop_and_never_waits():
    g = torch.Generator().manual_seed(0)
    x, weights = torch.randn(300, 64, generator=g), torch.rand(300, 2, generator=g)
    up, down = torch.randn(8, 96, 64, generator=g) / 8, torch.randn(8, 64, 48, generator=g) / 7
    indices = torch.rand(300, 7, generator=g).topk(2).indices  # expert 7 gets nothing
    fixed = {"indices": indices, "activation": "swiglu"}
    results = {}
    for name, device, dtype, backend in (
        ("exact", "cpu", torch.float64, "loop"),
        ("loop", "cuda", torch.bfloat16, "loop"),
        ("grouped", "cuda", torch.bfloat16, "grouped"),
        ("wide", "cuda", torch.float32, "grouped"),
    ):
        leaves = [t.to(torch.bfloat16).to(device, dtype).requires_grad_() for t in (x, up, down)]
        inputs = {"x": leaves[0], "up": leaves[1], "down": leaves[2], "weights": weights.to(device)}
        fixed["indices"] = indices.to(device)
        torch.cuda.set_sync_debug_mode("error" if name == "grouped" else "default")
        y = experts(**inputs, **fixed, backend=backend)
        grads = torch.autograd.grad(y, leaves, torch.ones_like(y))
        torch.cuda.set_sync_debug_mode("default")
        results[name] = [t.double().cpu() for t in (y, *grads)]
    exact = results["exact"]
    for i in range(4):
        size = exact[i].abs().max()
        error = {name: (r[i] - exact[i]).abs().max() / size for name, r in results.items()}
        # Not worse than plain products in the same precision, within the usual factor of two.
        assert error["grouped"] <= 2 * error["loop"]
        assert error["wide"] < 1e-4  # float32 sums, allowing TF32 to be off


@pytest.mark.gpu
def test_widths_that_the_kernel_cannot_take_are_refused():
    up, down = torch.zeros(2, 8, 12), torch.zeros(2, 12, 8)
    tensors = {"x": torch.zeros(4, 12), "weights": torch.zeros(4, 1), "up": up, "down": down}
    tensors = {name: t.to("cuda", torch.bfloat16) for name, t in tensors.items()}
    indices = torch.zeros(4, 1, dtype=torch.int64, device="cuda")
    with pytest.raises(BackendError, match="multiples of 8"):
        experts(**tensors, indices=indices, activation="silu")
