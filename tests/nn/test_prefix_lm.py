"""Prompts that are read both ways, plain and looped: nothing of an answer is seen before its time,
and writing token by token gives what one call gives."""

import itertools

import pytest
import torch
from looped_models import BLOCK, HALTING, looped_model, tokens

from mixlab.core.config import decode, to_tree
from mixlab.core.errors import ConfigError
from mixlab.jobs.config import RunConfig, load_config
from mixlab.nn.recursion.loop_pass import Loops
from mixlab.ops.packing import Packing

EXACT = {"rtol": 1e-9, "atol": 1e-11}  # float64: sums in another order err by some 1e-15
MLA = {
    "sequence_mixer": {"kind": "mla", "n_heads": 2, "kv_lora_rank": 8, "qk_nope_head_dim": 4,
                       "qk_rope_head_dim": 4, "v_head_dim": 8},
    "channel_mixer": {"kind": "moe", "n_experts": 3, "n_active_experts": 2, "d_expert": 8},
}  # fmt: skip
WINDOWED = {**BLOCK, "sequence_mixer": {**BLOCK["sequence_mixer"], "window": 4}}
BLOCKS = {"full": BLOCK, "mla": MLA, "near": WINDOWED}
N_PROMPT, LENGTH = 5, 12

CALLS = [
    *(({}, Loops(r)) for r in (1, 2, 3, 5)),
    *(({"halting": HALTING[h]}, Loops(r, may_exit=True)) for h in HALTING for r in (1, 2, 3, 6)),
    ({"halting": HALTING["gate"], "H_cycles": 2}, Loops(3, may_exit=True, exit_threshold=0.3)),
    ({"halting": HALTING["gate"], "prelude_layers": 0, "coda_layers": 0, "core_layers": 4},
     Loops(4, may_exit=True)),
]  # fmt: skip
every_call = pytest.mark.parametrize(("settings", "loops"), CALLS, ids=str)


def model_of(settings):
    return looped_model(blocks=BLOCKS, pattern=["full", "mla", "near", "full"], **settings)


def prefix_packing(batch, length=LENGTH, n_prompt=N_PROMPT):
    prefix = torch.zeros(batch, length, dtype=torch.bool)
    prefix[:, :n_prompt] = True
    return Packing(torch.zeros(batch, length, dtype=torch.int64), prefix)


@pytest.mark.parametrize("window", [None, 1, 3])
def test_the_mask_is_that_of_the_definition(window):
    ids = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1, 2], [0] * 10])
    prefix = torch.tensor([[1, 1, 1, 0, 1, 1, 0, 0, 0, 1], [1] * 4 + [0] * 6]).bool()
    mask = Packing(ids, prefix).mask(window)[:, 0]
    for b, t, s in itertools.product(range(2), range(10), range(10)):
        is_seen = ids[b, t] == ids[b, s] and (s <= t or (prefix[b, t] and prefix[b, s]))
        is_near = window is None or abs(t - s) < window
        assert bool(mask[b, t, s]) == bool(is_seen and is_near), (b, t, s)


@every_call
def test_an_answer_is_seen_forwards_only_and_the_prompt_both_ways(settings, loops):
    model, x = model_of(settings), tokens()
    kept = []
    model.embed_tokens.register_forward_hook(
        lambda module, inputs, out: kept.append(out.detach().requires_grad_()) or kept[-1]
    )
    logits = model(x, None, prefix_packing(3), loops=loops).logits
    for t in (0, 2, N_PROMPT - 1, N_PROMPT, 8, LENGTH - 2):
        (grad,) = torch.autograd.grad(logits[:, t].square().sum(), kept[0], retain_graph=True)
        seen = N_PROMPT if t < N_PROMPT else t + 1
        assert grad[:, :seen].abs().amax(dim=-1).min() > 0, "all that may be seen is"
        assert not grad[:, seen:].any(), f"position {t} sees a later answer"
    changed = x.clone()
    changed[:, 8:] = (changed[:, 8:] + 7) % 31
    after = model(changed, None, prefix_packing(3), loops=loops).logits
    torch.testing.assert_close(after[:, :8], logits[:, :8], **EXACT)


@every_call
def test_writing_after_a_prompt_equals_one_call(settings, loops):
    model, x = model_of(settings), tokens()
    want = model(x, None, prefix_packing(3), loops=loops).logits
    prompt = x[:, :N_PROMPT]
    out = model(prompt, model.initial_state(3), Packing.whole_prefix(prompt), loops=loops)
    found = [out.logits]
    for piece in x[:, N_PROMPT:].split([3, 1, 2, 1], dim=1):
        out = model(piece, out.state, loops=loops)
        found.append(out.logits)
    torch.testing.assert_close(torch.cat(found, dim=1), want, **EXACT)


@pytest.mark.parametrize("halting", [None, "gate", "kl_exit"])
def test_packed_examples_are_as_if_alone(halting):
    model = model_of({} if halting is None else {"halting": HALTING[halting]})
    loops, x = Loops(4, may_exit=halting is not None), tokens(1)
    ids = torch.tensor([[0] * 5 + [1] * 7])
    prefix = torch.tensor([[1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0]]).bool()
    packed = model(x, None, Packing(ids, prefix), loops=loops).logits
    alone = [
        model(x[:, a:b], None, prefix_packing(1, b - a, n), loops=loops).logits
        for a, b, n in ((0, 5, 3), (5, 12, 2))
    ]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), **EXACT)


def test_a_mixer_that_only_reads_forwards_is_refused():
    tree = to_tree(load_config("gdn-small"))
    tree["data"] = {"corpus": {"kind": "instructions"}, "tokenizer": tree["data"]["tokenizer"],
                    "seq_len": 128, "chat": {"prefix_lm": True}}  # fmt: skip
    with pytest.raises(ConfigError, match=r"data.chat.prefix_lm = True: .* gated_deltanet"):
        decode(RunConfig, tree)
    tree["data"]["chat"] = {}
    assert decode(RunConfig, tree).data.chat.prefix_lm is False
