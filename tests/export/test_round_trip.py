"""A model that went to a stock folder and came back is the same model, and the other way round."""

import json

import pytest
import torch
from byte_tokens import byte_tokenizer
from safetensors.torch import load_file, save_file
from stock_examples import EXAMPLES, LITERAL, random_model

from mixlab.export import TARGETS
from mixlab.export.stock_files import stock_tensors, write_model
from mixlab.export.stock_folder import read_stock_folder
from mixlab.export.verdict import verdict
from mixlab.nn.language_model import LanguageModel

ROUNDED = 2.0**-24
"""Half a unit in the last place of 1: norms that are stored as w - 1 may lose that much."""


def write(folder, model, dtype="float32"):
    folder.mkdir(exist_ok=True)
    target = verdict(model.cfg).target
    tensors = stock_tensors(target, model, dtype)
    write_model(folder, target, model.cfg, tensors, dtype, byte_tokenizer(), None)
    return tensors


def is_offset(name, model_type):
    """Qwen's hybrids store norms as w - 1, but the one inside Gated DeltaNet."""
    return model_type in ("qwen3_5_text", "qwen3_next") and (
        "norm.weight" in name and "o_norm" not in name and "linear_attn" not in name
    )


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_goes_where_it_should(name):
    expected, settings = EXAMPLES[name]
    assert verdict(random_model(settings).cfg).target is TARGETS[expected]


@pytest.mark.parametrize("name", LITERAL)
def test_what_comes_back_is_what_went(tmp_path, name):
    model_type, settings = EXAMPLES[name]
    model = random_model(settings)
    first = write(tmp_path / "a", model)
    back = read_stock_folder(tmp_path / "a")
    assert back.target is TARGETS[model_type]
    again = LanguageModel(back.config)
    again.load_state_dict(back.weights)  # strict: every name and shape
    for key, tensor in model.state_dict().items():
        if is_offset(key, model_type):
            assert (back.weights[key] - tensor).abs().max() <= ROUNDED, key
        else:
            assert torch.equal(back.weights[key], tensor), key
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        difference = (again.eval()(tokens).logits - model(tokens).logits).abs().max()
    assert difference <= (1e-5 if "Qwen3" in name else 0)  # rounded norms of the hybrids
    second = write(tmp_path / "b", again.eval())
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        if is_offset(key, model_type):
            assert (second[key] - tensor).abs().max() <= ROUNDED, key
        else:
            assert torch.equal(second[key], tensor), key
    assert json.loads((tmp_path / "a/config.json").read_text()) == json.loads(
        (tmp_path / "b/config.json").read_text()
    )


@pytest.mark.parametrize("name", ["Qwen3.5", "Qwen3-Next"])
def test_bfloat16_checkpoints_come_back_exactly(tmp_path, name):
    """1 + w holds all the bits of a bfloat16 w of an ordinary size."""
    model = random_model(EXAMPLES[name][1])
    first = write(tmp_path / "a", model, "bfloat16")
    back = read_stock_folder(tmp_path / "a")
    again = LanguageModel(back.config)
    again.load_state_dict(back.weights)
    second = write(tmp_path / "b", again, "bfloat16")
    assert all(torch.equal(second[key], tensor) for key, tensor in first.items())


def test_the_selection_bias_is_never_rounded():
    tensors = stock_tensors(
        TARGETS["deepseek_v3"], random_model(EXAMPLES["DeepSeek-V3"][1]), "bfloat16"
    )
    wide = {name for name, t in tensors.items() if t.dtype == torch.float32}
    assert wide == {f"model.layers.{i}.mlp.gate.e_score_correction_bias" for i in (1, 2)}


def test_shards_and_a_tied_head_that_is_stored(tmp_path):
    """As large checkpoints have it: several files with an index; the head stored once more."""
    model = random_model(EXAMPLES["Qwen2"][1])
    tensors = write(tmp_path, model)
    (tmp_path / "model.safetensors").unlink()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    index = {"metadata": {}, "weight_map": {n: f for f, part in files.items() for n in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    back = read_stock_folder(tmp_path)
    want = model.state_dict()
    assert back.weights.keys() == want.keys()
    assert all(torch.equal(back.weights[key], tensor) for key, tensor in want.items())


def test_half_precision_is_read_exactly(tmp_path):
    write(tmp_path, random_model(EXAMPLES["Llama"][1]))
    path = tmp_path / "model.safetensors"
    halves = {name: t.half() for name, t in load_file(path).items()}
    save_file(halves, path)
    weights = read_stock_folder(tmp_path).weights
    assert torch.equal(weights["embed_tokens.weight"], halves["model.embed_tokens.weight"].float())
    assert {t.dtype for t in weights.values()} == {torch.float32}


def test_the_config_may_name_the_end_of_text(tmp_path):
    write(tmp_path, random_model(EXAMPLES["Llama"][1]))
    (tmp_path / "tokenizer_config.json").unlink()
    back = read_stock_folder(tmp_path)
    assert back.tokenizer.eos == "<|endoftext|>" and back.chat_template is None
