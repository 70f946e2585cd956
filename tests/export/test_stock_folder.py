"""What a model folder may not be: every fault is refused by name, and nothing of it is run."""

import json
import pickle

import pytest
import torch
from byte_tokens import byte_tokenizer
from safetensors.torch import load_file, save_file
from stock_examples import EXAMPLES, random_model

from mixlab.export.fields import ModelFolderError
from mixlab.export.stock_files import stock_tensors, write_model
from mixlab.export.stock_folder import read_stock_folder
from mixlab.export.verdict import verdict


@pytest.fixture
def make(tmp_path):
    """Write one of the examples into a folder."""

    def write(name="Llama"):
        model = random_model(EXAMPLES[name][1])
        target = verdict(model.cfg).target
        tensors = stock_tensors(target, model)
        write_model(tmp_path, target, model.cfg, tensors, "float32", byte_tokenizer(), None)
        return tmp_path

    return write


def edit(path, change):
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def refused(folder) -> str:
    with pytest.raises(ModelFolderError) as error:
        read_stock_folder(folder)
    text = str(error.value)
    assert str(folder) in text and text.endswith(".") and "\n" not in text
    return text


@pytest.mark.parametrize(
    ("example", "field", "value", "told"),
    [
        ("Llama", "rope_scaling", {"rope_type": "llama3", "factor": 8.0}, "nothing beside"),
        ("Llama", "rope_parameters", {"rope_type": "yarn"}, "no scaled rotary positions"),
        ("Llama", "rope_parameters", {"rope_theta": 1e4, "beta_fast": 32}, "beta_fast"),
        ("Llama", "hidden_act", "gelu", "hidden_act = 'gelu'"),
        ("Llama", "mlp_bias", True, "mlp_bias = True"),
        ("Llama", "attention_dropout", 0.1, "attention_dropout"),
        ("Llama", "quantization_config", {"bits": 4}, "quantization_config"),
        ("Llama", "logit_scale", 0.5, "logit_scale = 0.5: mixlab does not know this field"),
        ("Llama", "num_key_value_heads", 3, "num_key_value_heads = 3: expected a divisor of 4"),
        ("Llama", "hidden_size", "32", "hidden_size = '32': expected a whole number"),
        ("Llama", "rms_norm_eps", 0, "rms_norm_eps = 0"),
        ("Llama", "vocab_size", None, "vocab_size = None: expected a value"),
        ("Llama", "partial_rotary_factor", 0.5, "partial_rotary_factor"),
        ("Llama", "rope_interleaved", True, "rope_interleaved"),
        ("Llama", "model_type", "gpt2", "expected one of qwen3, qwen2, llama"),
        ("Llama", "model_type", "hrm_text", "two stacks"),
        ("Llama", "auto_map", {"AutoModelForCausalLM": "modeling.Evil"}, "asks for code"),
        ("Llama", "num_hidden_layers", 3, "the weights have no model.layers.2"),
        ("Llama", "num_hidden_layers", 10**9, "num_hidden_layers = 1000000000: expected at most"),
        ("Llama", "intermediate_size", 41, "has the shape"),
        ("Llama", "tie_word_embeddings", True, "is not model.embed_tokens.weight"),
        ("Qwen3, windows", "layer_types", ["full_attention"], "expected 3 of full_attention"),
        ("Qwen3, windows", "use_sliding_window", False, "use_sliding_window = False"),
        ("Qwen3, windows", "sliding_window", -1, "sliding_window = -1"),
        ("Qwen3, windows", "sliding_window", None, "sliding_window = None"),
        ("Qwen3, windows", "head_dim", None, "head_dim = None: expected a value"),
        ("Mixtral", "sliding_window", 0, "sliding_window = 0"),
        ("OLMoE", "clip_qkv", 8.0, "clip_qkv = 8.0"),
        ("OLMoE", "num_experts_per_tok", 9, "num_experts_per_tok = 9: expected at most 4"),
        ("DeepSeek-V3", "n_group", 2, "no groups of experts"),
        ("DeepSeek-V3", "n_group", None, "n_group = 8: expected 1"),
        ("DeepSeek-V3", "num_nextn_predict_layers", 1, "predicts one token at a time"),
        ("DeepSeek-V3", "rope_interleave", False, "rope_interleave = False"),
        ("Qwen3.5", "attn_output_gate", False, "attn_output_gate"),
        ("Qwen3.5", "full_attention_interval", 3, "what layer_types says"),
        ("Qwen3-Next", "shared_expert_intermediate_size", 13, "a multiple of moe_intermediate"),
        ("Qwen3-Next", "attention_bias", True, "attention_bias = True"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_options_are_refused_by_name(make, example, field, value, told):
    folder = make(example)
    edit(folder / "config.json", lambda tree: tree.update({field: value}))
    assert told in refused(folder)


def test_fields_without_an_effect_may_be_there(make):
    folder = make()
    fields = {
        "_name_or_path": "x", "torch_dtype": "bfloat16", "transformers_version": "4.40",
        "is_llama_config": True, "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
        "rope_scaling": None, "rope_interleaved": False, "pretraining_tp": 1, "bos_token_id": [1],
    }  # fmt: skip
    edit(folder / "config.json", lambda tree: tree.update(fields))
    read_stock_folder(folder)


def test_older_rotary_fields_mean_the_same(make):
    folder = make()
    before = read_stock_folder(folder).config

    def change(tree):
        tree["rope_theta"] = tree.pop("rope_parameters")["rope_theta"]

    edit(folder / "config.json", change)
    assert read_stock_folder(folder).config == before
    edit(folder / "config.json", lambda tree: tree.update(rope_scaling={"type": "linear"}))
    assert "rope_type = 'linear'" in refused(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_and_damaged_files(make, name):
    folder = make()
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    assert f"{name} is missing" in refused(folder)
    for damaged in (content[: len(content) // 2], b"", b"[1, 2]" + b" " * 20, b"\xff\xfe" * 20):
        (folder / name).write_bytes(damaged)
        assert name in refused(folder)


class Bomb:
    """Unpickling it is the failure of the test."""

    def __reduce__(self):
        return pytest.fail, ("a pickle of the folder was read",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_never_read(make, name):
    folder = make()
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    assert name in (text := refused(folder)) and "pickle" in text


def test_weights_that_belong_elsewhere(make):
    folder = make()
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"model.layers.0.self_attn.sinks": torch.ones(4)}, path)
    assert "has model.layers.0.self_attn.sinks" in refused(folder)
    save_file(tensors | {"model.norm.weight": torch.full((32,), torch.nan)}, path)
    assert "model.norm.weight holds numbers that are not finite" in refused(folder)
    save_file(tensors | {"model.norm.weight": torch.ones(32, dtype=torch.int8)}, path)
    assert "model.norm.weight is I8" in refused(folder)


def test_a_bias_that_our_model_cannot_hold(make):
    folder = make("Llama, biases")
    path = folder / "model.safetensors"
    read_stock_folder(folder)
    tensors = load_file(path)
    tensors["model.layers.1.self_attn.o_proj.bias"] += 0.5
    save_file(tensors, path)
    assert "model.layers.1.self_attn.o_proj.bias is not 0" in refused(folder)


@pytest.mark.parametrize("file", ["../other.safetensors", "/etc/passwd", 3, "missing.safetensors"])
def test_an_index_names_files_of_its_folder(make, file):
    folder = make()
    table = {"weight_map": {"model.norm.weight": file}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))
    assert ("is missing" if file == "missing.safetensors" else repr(file)) in refused(folder)


def test_code_and_other_tokenizers(make):
    folder = make()
    settings = folder / "tokenizer_config.json"
    edit(settings, lambda tree: tree.update(auto_map={"AutoTokenizer": ["tok.Evil", None]}))
    assert "asks for code" in refused(folder)
    edit(settings, lambda tree: (tree.pop("auto_map"), tree.update(eos_token="<nowhere>")))
    assert "<nowhere>" in refused(folder)


def test_a_tokenizer_of_another_model(make):
    folder = make()
    edit(folder / "config.json", lambda tree: tree.update(vocab_size=100))
    path = folder / "model.safetensors"
    small = {n: t[:100] if t.shape[0] == 260 else t for n, t in load_file(path).items()}
    save_file({n: t.contiguous() for n, t in small.items()}, path)
    assert "has 257 tokens, and the model rows for 100" in refused(folder)


def test_no_folder(tmp_path):
    assert "does not exist" in refused(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    assert "is a file" in refused(tmp_path / "file")
