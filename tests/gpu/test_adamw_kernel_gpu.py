"""AdamW in one launch against torch's, on odd lengths, clipped, with absent gradients.

Without a GPU, TRITON_INTERPRET=1 runs the kernel in Triton's interpreter.
"""

import os

import pytest
import torch
from torch import nn

from mixlab.training.optimizers import AdamWConfig

pytestmark = pytest.mark.gpu

SHAPES = [(16, 8), (5000,), (3,), (70, 33), (1,), (2048, 3), (0, 4)]


@pytest.fixture(scope="module")
def device() -> str:
    pytest.importorskip("triton", reason="Triton is not installed here")
    if torch.cuda.is_available():
        return "cuda"
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("there is no GPU; TRITON_INTERPRET=1 runs the kernel on a CPU")
    return "cpu"


def made(device: str) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape).to(device)) for shape in SHAPES]


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.9, 0.999), (0.0, 0.99)])
def test_updates_are_those_of_torch(device, betas):
    from mixlab.training.optimizers.adamw_kernel import Entry, ManyTensors

    ours, theirs = made(device), made(device)
    decays = [0.1 * (i % 2) for i in range(len(ours))]
    entries = [
        Entry(p, torch.zeros_like(p), torch.zeros_like(p), torch.zeros((), device=device), decay)
        for p, decay in zip(ours, decays, strict=True)
    ]
    kernel = ManyTensors(entries)
    stock = [
        torch.optim.AdamW([p], lr=1e-2, betas=betas, eps=1e-8, weight_decay=decay, foreach=False)
        for p, decay in zip(theirs, decays, strict=True)
    ]
    for step in range(5):
        clip = torch.tensor(0.3, device=device) if step % 2 else None
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            grad = None if step == 2 and i == 3 else torch.randn(p.shape).to(device)
            p.grad = grad
            q.grad = None if grad is None else grad * (1 if clip is None else clip)
        if step == 3:  # lies where the kernel cannot read it
            ours[0].grad = torch.randn(8, 16).to(device).T
            theirs[0].grad = ours[0].grad * clip
            ours[1].data = ours[1].data.clone()  # other memory
        kernel.update(lr=1e-2, betas=betas, eps=1e-8, clip=clip)
        for optimizer in stock:
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):  # float32, with roots and quotients of other units
        torch.testing.assert_close(p, q, rtol=1e-5, atol=2e-6)
    assert [int(entry.n_updates) for entry in entries] == [5, 5, 5, 4, 5, 5, 5]


def test_both_backends_go_on_from_each_others_state(device):
    if device == "cpu":
        pytest.skip("the config takes the kernel on a GPU only")
    shapes = {"a.weight": (300, 70), "embed_tokens.weight": (64, 48), "norm.weight": (48,)}
    states, results = [], []
    for backends in (("fused", "fused"), ("triton", "fused"), ("fused", "triton")):
        torch.manual_seed(0)
        params = {name: nn.Parameter(torch.randn(s, device=device)) for name, s in shapes.items()}
        optimizer = None
        for backend in backends:
            after = AdamWConfig(lr=0.01, backend=backend).build(params.items())
            if optimizer is not None:
                after.load_state_tensors(
                    {k: v.clone() for k, v in optimizer.state_tensors().items()}
                )
            optimizer = after
            for _ in range(3):
                for p in params.values():
                    p.grad = torch.randn_like(p)
                optimizer.step(0.5, torch.tensor(0.7, device=device))
        assert optimizer is not None
        states.append(optimizer.state_tensors())
        results.append(params)
    for state, params in zip(states[1:], results[1:], strict=True):
        for found, want in ((state, states[0]), (params, results[0])):
            assert found.keys() == want.keys()
            for name, tensor in found.items():
                torch.testing.assert_close(tensor, want[name], rtol=1e-5, atol=2e-6)
