"""The operators around GPU kernels, run on a CPU with a kernel made of the recurrence."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mixlab.ops.gated_delta_rule import gated_delta_rule, kernel_ops
from mixlab.ops.gated_delta_rule.kernel_ops import Kernel, run_kernel
from mixlab.ops.gated_delta_rule.recurrent import run_recurrent
from mixlab.ops.packing import Packing

NAMES = ("q", "k", "v", "log_a", "b", "state")


def ids_of(documents):
    if documents is None:
        return None
    packed = torch.zeros(1, int(documents.cu_seqlens[-1]), dtype=torch.int32)
    packed[0, documents.cu_seqlens[1:-1].long()] = 1
    return Packing(packed.cumsum(1, dtype=torch.int32))


def stand_in_forward(q, k, v, log_a, b, state, documents, final_state):
    assert all(x.is_contiguous() for x in (q, k, v, log_a, b))
    o, final = run_recurrent(q, k, v, log_a, b, state, ids_of(documents), False)
    kept = k.new_zeros(1, *v.shape[:3], kernel_ops.CHUNK)
    return o, final if final_state else None, log_a.clone(), kept


def stand_in_backward(q, k, v, g, b, kept, state, do, dstate, documents):
    """`g` is log_a itself here."""

    def differentiate():
        leaves = [
            None if x is None else x.detach().requires_grad_() for x in (q, k, v, g, b, state)
        ]
        o, final = run_recurrent(*leaves, ids_of(documents), False)
        loss = (o * do).sum()
        if dstate is not None:
            loss = loss + (final * dstate).sum()
        loss.backward()
        return tuple(None if x is None else x.grad for x in leaves)

    # Operators run below autograd; another thread has it.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(differentiate).result()


if "stand_in" not in kernel_ops.KERNELS:
    kernel_ops.register("stand_in", Kernel(stand_in_forward, stand_in_backward))


def make_inputs(n_tokens=9, n_keys=2, n_heads=4, k_dim=5, v_dim=3, n_batch=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, n_batch, n_tokens, n_keys, k_dim, generator=g)
    v = torch.randn(n_batch, n_tokens, n_heads, v_dim, generator=g)
    log_a, b = torch.rand(2, n_batch, n_tokens, n_heads, generator=g)
    state = torch.randn(n_batch, n_heads, k_dim, v_dim, generator=g)
    return dict(zip(NAMES, (q, k, v, -log_a, b, state), strict=True))


def packing_of(*starts, n_tokens=9):
    """One row of documents for every argument, each a list of where they start after the first."""
    ids = torch.zeros(len(starts), n_tokens, dtype=torch.int32)
    for row, places in enumerate(starts):
        for place in places:
            ids[row, place:] += 1
    return Packing(ids)


def gradients(rule, inputs, packing):
    leaves = {n: None if x is None else x.clone().requires_grad_() for n, x in inputs.items()}
    o, state = rule(*leaves.values(), packing)
    loss = (o * torch.linspace(-1, 1, o.numel()).view(o.shape)).sum()
    if state is not None:
        loss = loss + state.cos().sum()
    loss.backward()
    return {"o": o.detach()} | {n: None if x is None else x.grad for n, x in leaves.items()}


def by_op(q, k, v, log_a, b, state, packing):
    return run_kernel("stand_in", q, k, v, log_a, b, state, packing, True, packing is None)


def by_definition(q, k, v, log_a, b, state, packing):
    return gated_delta_rule(
        q=q, k=k, v=v, log_a=log_a, b=b, state=state, packing=packing,
        normalize_qk=True, backend="recurrent",
    )  # fmt: skip


def assert_same(got, want):
    assert want["q"] is not None
    for name, x in want.items():
        if x is not None:
            # float32 sums in another order.
            torch.testing.assert_close(got[name], x, rtol=1e-4, atol=1e-5, msg=name)


CASES = {
    "state": (make_inputs(), None),
    "plain": (make_inputs() | {"state": None}, None),
    "packed": (make_inputs() | {"state": None}, packing_of([1, 4], [6])),
}


@pytest.mark.parametrize("case", CASES)
def test_operator_has_the_gradients_of_the_recurrence(case):
    inputs, packing = CASES[case]
    assert_same(gradients(by_op, inputs, packing), gradients(by_definition, inputs, packing))


@pytest.mark.parametrize("case", CASES)
def test_rules_for_shapes_and_gradients_fit_the_operator(case):
    inputs, packing = CASES[case]
    leaves = [None if x is None else x.clone().requires_grad_() for x in inputs.values()]
    documents = (None,) * 3 if packing is None else kernel_ops.documents_of(packing)
    torch.library.opcheck(
        torch.ops.mixlab.delta_rule_stand_in, (*leaves, *documents, packing is None)
    )


def test_state_that_is_not_asked_for_is_not_made():
    inputs = make_inputs()
    with torch.no_grad():
        o, state = run_kernel("stand_in", *inputs.values(), None, False, False)
    assert state is None and o.shape == inputs["v"].shape


def test_half_precision_comes_out_as_it_came_in():
    inputs = {n: x.to(torch.bfloat16) for n, x in make_inputs().items()}
    got = gradients(by_op, inputs, None)
    assert all(x.dtype == torch.bfloat16 for x in got.values())


def test_one_graph_whatever_the_documents():
    """Compiled whole: no break, and batches with other numbers of documents compile nothing."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(by_op, backend=counter, fullgraph=True)
    torch._dynamo.reset()
    inputs = make_inputs() | {"state": None}
    for starts in ([[1, 4], [6]], [[3], [5]], [[1, 2, 3, 7], [4, 8]]):
        packing = packing_of(*starts)
        for table in kernel_ops.documents_of(packing):
            torch._dynamo.mark_dynamic(table, 0)
        want = gradients(by_definition, inputs, packing)
        assert_same(gradients(compiled, inputs, packing), want)
    assert counter.frame_count == 1


@pytest.mark.parametrize("case", CASES)
def test_plain_pytorch_compiles_whole(case):
    """`chunked` is one operator as well: its loops are not traced."""
    inputs, packing = CASES[case]

    def rule(q, k, v, log_a, b, state, packing):
        return gated_delta_rule(
            q=q, k=k, v=v, log_a=log_a, b=b, state=state, packing=packing,
            normalize_qk=True, backend="chunked",
        )  # fmt: skip

    compiled = torch.compile(rule, backend="aot_eager", fullgraph=True)
    assert_same(gradients(compiled, inputs, packing), gradients(by_definition, inputs, packing))
