"""What is said before training: where a model goes, and by name why it does not."""

import pytest
from stock_examples import ATTENTION, DELTA, GATED, LOOPED, MLA, MLP, MOE, NORMED, SIGMOID, tree

from mixlab.export.target import ENGINES
from mixlab.export.verdict import lines, verdict
from mixlab.nn.language_model import LanguageModelConfig


def judge(*layers, **settings):
    return verdict(LanguageModelConfig(**tree(*layers, **settings)))


@pytest.mark.parametrize(
    ("layers", "nearest", "told"),
    [
        ([(ATTENTION | {"rope_frac": 0.0}, MLP)], "Llama", "rope_frac = 0"),
        ([(ATTENTION | {"rope_frac": 0.5}, MOE)], "Mixtral", "turns all channels"),
        ([(NORMED, MOE | {"activation": "silu"})], "Qwen3-MoE", "activation = silu"),
        ([(NORMED, MLP), (NORMED, MLP | {"d_ff": 48})], "Qwen3", "d_ff differs between layers"),
        ([(NORMED, MLP), (NORMED | {"head_dim": 16}, MLP)], "Qwen3", "head_dim differs"),
        ([(DELTA | {"allow_neg_eigval": True}, MLP), (GATED, MLP)], "Qwen3.5 (text)",
         "allow_neg_eigval = true"),
        ([(DELTA | {"conv_size": 0}, MLP), (GATED, MLP)], "Qwen3.5 (text)", "conv_size = 0"),
        ([(DELTA | {"output_gate": False}, MLP), (GATED, MLP)], "Qwen3.5 (text)", "output_gate"),
        ([(DELTA, MLP), (GATED | {"window": 4}, MLP)], "Qwen3.5 (text)", "window"),
        ([(DELTA, MLP), (GATED | {"qk_norm": "none"}, MLP)], "Qwen3.5 (text)", "qk_norm = none"),
        ([(MLA, SIGMOID), (MLA, MLP)], "DeepSeek-V3", "layers without experts come first"),
        ([(MLA, MOE)], "DeepSeek-V3", "scores = softmax"),
        ([(MLA | {"norm_eps": 1e-5}, MLP)], "DeepSeek-V3", "norm_eps = 1e-05"),
        ([(MLA, MLP), (DELTA, MLP)], None, "mla"),
    ],
    ids=str,
)  # fmt: skip
def test_reasons_name_the_setting(layers, nearest, told):
    found = judge(*layers)
    assert found.target is None
    assert nearest is None or found.nearest.label == nearest
    assert any(told in reason for reason in found.reasons) or nearest is None
    assert [a.answer for a in found.answers] == ["no"] * len(ENGINES)
    assert any(told in text for _, text in lines(found)) or nearest is None


def answers(*layers):
    return {a.engine: a for a in judge(*layers).answers}


@pytest.mark.parametrize(
    ("at", "answer"), [([2, 5], "yes"), ([1, 3, 5], "yes"), ([4, 5], "no"), ([5], "yes")]
)
def test_llama_cpp_takes_intervals(at, answer):
    found = answers(*[(GATED if i in at else DELTA, MLP) for i in range(6)])
    assert found["llama.cpp"].answer == answer
    assert found["transformers"].answer == "yes"


def test_limits_of_single_engines():
    alone = answers((DELTA, MLP), (DELTA, MLP))
    assert "without a cache" in alone["transformers"].why and alone["llama.cpp"].answer == "no"
    wide = answers((DELTA | {"v_head_dim": 16}, MLP), (GATED, MLP))
    assert "v_head_dim" in wide["llama.cpp"].why
    no_content = answers((MLA | {"qk_nope_head_dim": 0}, MLP))
    assert no_content["vLLM"].answer == "no" and no_content["transformers"].answer == "yes"
    large = answers((MLA | {"kv_lora_rank": 512, "qk_rope_head_dim": 64}, MLP))
    assert large["vLLM"].answer == "yes"
    assert answers((NORMED, MLP))["vLLM"].answer == "untried"  # heads of 8
    assert answers((NORMED | {"head_dim": 64}, MLP))["vLLM"].answer == "yes"
    assert answers((NORMED | {"window": 4}, MLP))["llama.cpp"].answer == "no"


@pytest.mark.parametrize(
    "change",
    [
        {"injection": "concat"}, {"state_init": "input"}, {"state_norm": "learned"},
        {"prelude_layers": 1, "core_layers": 1}, {"coda_layers": 1, "core_layers": 1},
    ],
    ids=str,
)  # fmt: skip
def test_what_keeps_a_looped_model_from_hrm_text(change):
    layers = [(ATTENTION, MLP)] * 2
    assert judge(*layers, recursion=LOOPED).target.label == "HrmText"
    found = judge(*layers, recursion=LOOPED | change)
    assert found.target is None and found.nearest.label == "HrmText"
    (name,) = set(change) - {"core_layers"}
    assert all(f"recursion.{name}" in reason for reason in found.reasons), found.reasons


def test_an_import_prefers_what_it_came_from():
    cfg = LanguageModelConfig(**tree((DELTA, MLP), (GATED, MLP)))
    assert verdict(cfg).target.label == "Qwen3.5 (text)"
    assert verdict(cfg, prefer="qwen3_next").target.label == "Qwen3-Next"
    assert verdict(cfg, prefer="llama").target.label == "Qwen3.5 (text)"
