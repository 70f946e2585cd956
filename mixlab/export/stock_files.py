"""A stock model folder, written: weights, config.json, generation_config.json and the tokenizer."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from mixlab.core.config import Tree
from mixlab.data.tokenizers.base import Tokenizer
from mixlab.export.moves import to_stock
from mixlab.export.target import Target
from mixlab.nn.language_model import LanguageModel, LanguageModelConfig

DType = Literal["float32", "bfloat16"]
WIDE = ("e_score_correction_bias",)
"""Endings of tensors that stay in float32: a rounded one would choose other experts."""
WEIGHTS, CONFIG, GENERATION = "model.safetensors", "config.json", "generation_config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


PARITY = "parity.json"
SEALED = (WEIGHTS, CONFIG, TOKENIZER)
"""Files that the certificate is about, by their hashes."""


class ChatFacts(NamedTuple):
    """How a tuned model is talked to."""

    template: str  # in the language of transformers' chat templates
    stop_ids: tuple[int, ...]  # that end an answer


def stock_tensors(
    target: Target, model: LanguageModel, dtype: DType = "float32"
) -> dict[str, Tensor]:
    """The model's weights by their stock names.

    All arithmetic on them is done in float32, before they are rounded.
    """
    ours = {name: t.detach().to("cpu", torch.float32) for name, t in model.state_dict().items()}
    out = {}
    for name, tensor in to_stock(ours, target.moves(model.cfg)).items():
        wanted = torch.float32 if name.endswith(WIDE) else getattr(torch, dtype)
        out[name] = tensor.to(wanted).contiguous().clone()
    return out


def write_model(
    folder: Path,
    target: Target,
    cfg: LanguageModelConfig,
    tensors: Mapping[str, Tensor],
    dtype: DType,
    tokenizer: Tokenizer,
    chat: ChatFacts | None,
) -> None:
    """Write everything that a loader reads into an empty folder.

    Raises:
        OSError: the system refused.
    """
    # The mark without which older loaders of transformers refuse a file.
    safetensors.torch.save_file(dict(tensors), folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o666 & ~_umask(folder))  # the library makes it private
    config = target.stock_config(cfg) | {
        "dtype": dtype,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": None,
    }
    _write(folder / CONFIG, config)
    stops = dict.fromkeys([tokenizer.eos_id, *(chat.stop_ids if chat else ())])
    generation: Tree = {
        "eos_token_id": list(stops) if len(stops) > 1 else tokenizer.eos_id,
        "pad_token_id": tokenizer.eos_id,
    }
    if not target.can_cache(cfg):
        generation["use_cache"] = False
    _write(folder / GENERATION, generation)
    (folder / TOKENIZER).write_text(tokenizer.to_json(), encoding="utf-8")
    settings: Tree = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokenizer.eos,
        "pad_token": tokenizer.eos,
        "model_max_length": cfg.max_seq_len,
        "clean_up_tokenization_spaces": False,
    }
    if chat is not None:
        settings["chat_template"] = chat.template
    _write(folder / TOKENIZER_CONFIG, settings)


def sha256(path: Path) -> str:
    """The hash of a file, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask(folder: Path) -> int:
    """The permissions that this process gives to nobody, read off a file of its own."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o666
    probe.unlink()
    return 0o666 & ~mode


def _write(path: Path, tree: Any) -> None:
    text = json.dumps(tree, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
