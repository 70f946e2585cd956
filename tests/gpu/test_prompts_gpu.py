"""Prompts read by kernels in half precision, against the same model in float32."""

import pytest
import torch
from infer.decoding_models import roughened, small

from mixlab.infer.decoding.prompts import Prompts
from mixlab.infer.decoding.row_model import row_model

pytestmark = pytest.mark.gpu
ATTENTION = {"kind": "attention", "n_heads": 4, "head_dim": 64}
DELTA = {"kind": "gated_deltanet", "n_heads": 2, "head_dim": 64}
MIXERS = {
    "plain attention": ATTENTION,
    "window": ATTENTION | {"window": 33},
    "grouped": ATTENTION
    | {"n_kv_heads": 2, "qk_norm": "head", "rope_frac": 0.25, "output_gate": True},
    "biases": ATTENTION | {"bias": True},
    "delta": DELTA,
    "more values": DELTA | {"n_v_heads": 4},
    "no convolution": DELTA | {"conv_size": 0},
    "nothing fades": DELTA | {"decay": "none", "output_gate": False},
    "latent attention": {
        "kind": "mla", "n_heads": 2, "kv_lora_rank": 32, "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 32, "v_head_dim": 64,
    },
    "experts": ATTENTION,
}  # fmt: skip
MLP = {"kind": "mlp", "d_ff": 128}
EXPERTS = {"kind": "moe", "n_experts": 4, "n_active_experts": 4, "d_expert": 64}
"""All of them: near ties would send tokens to other ones."""


def error(found, want):
    return ((found - want).pow(2).mean() / want.pow(2).mean()).sqrt().item()


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("n_tokens", [1, 3, 200])
def test_no_further_from_float32_than_the_models_own_pass(name, n_tokens, monkeypatch):
    """The prompt's logits, and those of steps from the caches that it left."""
    channel = EXPERTS if name == "experts" else MLP
    cfg = small(MIXERS[name], channel, d_model=128, max_seq_len=512)
    model = roughened(cfg, torch.float32).cuda()
    exact = row_model(model)
    fast = row_model(model, precision=torch.bfloat16)
    monkeypatch.setattr(Prompts, "fits", lambda model, dtype: False)
    own = row_model(model, precision=torch.bfloat16)
    assert fast._prompts is not None and own._prompts is None
    g = torch.Generator().manual_seed(0)
    texts = torch.randint(0, 29, (3, n_tokens), generator=g).tolist()
    models = {"exact": exact, "fast": fast, "own": own}
    found = {name: [rows.read(0, texts).clone()] for name, rows in models.items()}
    for i in range(3):
        tokens = [(7 * i + k) % 29 for k in range(3)]
        for name, rows in models.items():
            found[name].append(rows.step(tokens).clone())
    for i, want in enumerate(found["exact"]):
        assert torch.isfinite(found["fast"][i]).all()
        assert error(found["fast"][i], want) < 1.5 * error(found["own"][i], want) + 0.01
