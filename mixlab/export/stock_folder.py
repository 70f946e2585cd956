"""A stock model folder, read: every file checked before it is believed, and none of it run.

Weights come from safetensors alone, in one file or in shards with an index. Names and shapes are
held against what the config says before any weight is read.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mixlab.core.config import decode
from mixlab.core.errors import ConfigError, DataError
from mixlab.core.run_dir import is_run
from mixlab.data.tokenizers.base import KNOWN_EOS, Tokenizer, load_tokenizer
from mixlab.export import TARGETS
from mixlab.export.fields import CODE, Fields, ModelFolderError
from mixlab.export.moves import Move, MoveError, Tensors, to_ours, to_stock
from mixlab.export.stock_files import (
    CONFIG,
    PARITY,
    SEALED,
    TOKENIZER,
    TOKENIZER_CONFIG,
    WEIGHTS,
    sha256,
)
from mixlab.export.target import Target
from mixlab.nn.language_model import LanguageModel, LanguageModelConfig

INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
OTHER = (".gguf", ".h5", ".msgpack", ".onnx", ".npz")
DTYPES = ("F64", "F32", "F16", "BF16")
MAX_JSON_BYTES = 64 * 2**20
_SHARD = re.compile(r"[A-Za-z0-9][\w.-]*\.safetensors")


class StockModel(NamedTuple):
    """A stock checkpoint in our terms."""

    target: Target
    config: LanguageModelConfig
    weights: Tensors  # by our names, float32
    tokenizer: Tokenizer
    chat_template: str | None


def read_stock_folder(folder: Path) -> StockModel:
    """Read a checkpoint of one of the architectures in `TARGETS`.

    Raises:
        ModelFolderError: a file is missing or damaged, the architecture or one of its options is
            not known here, names or shapes do not fit, or the folder asks for code.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ModelFolderError(f"{folder} {what}: expected a model folder with a {CONFIG}.")
    if is_run(folder):
        raise ModelFolderError(
            f"{folder} is a run already: expected a model folder with a {CONFIG}."
        )
    _check_seal(folder)
    target, config, is_tied = _read_config(folder)
    moves = target.moves(config)
    with torch.device("meta"):
        skeleton = LanguageModel(config).state_dict()
    expected = {name: tuple(t.shape) for name, t in to_stock(skeleton, moves).items()}
    weights = _read_weights(folder, expected, moves, is_tied)
    wrong = [name for name, t in skeleton.items() if weights[name].shape != t.shape]
    assert not wrong and weights.keys() == skeleton.keys(), wrong
    tokenizer, chat_template = _read_tokenizer(folder, config)
    return StockModel(target, config, weights, tokenizer, chat_template)


def _check_seal(folder: Path) -> None:
    """Hold the files against the hashes that an export left beside them, if one did."""
    if not (folder / PARITY).exists():
        return
    stated = read_object(folder / PARITY).get("sha256")
    for name in SEALED if isinstance(stated, dict) else ():
        if name in stated and (folder / name).exists() and sha256(folder / name) != stated[name]:
            raise ModelFolderError(
                f"{folder / name} was altered since it was exported ({PARITY} has its hash). "
                f"Export it anew, or delete {PARITY} to take the folder as it is."
            )


# --- config.json ------------------------------------------------------------------------------


def _read_config(folder: Path) -> tuple[Target, LanguageModelConfig, bool]:
    path = folder / CONFIG
    fields = read_object(path)
    kind = fields.get("model_type")
    known = ", ".join(TARGETS)
    reader = Fields(str(path), fields)  # refuses code before anything else
    if not isinstance(kind, str) or kind not in TARGETS:
        raise ModelFolderError(f"{path}: model_type = {kind!r}: expected one of {known}.")
    tree = TARGETS[kind].our_model(reader)
    reader.finish()
    try:
        config = decode(LanguageModelConfig, tree)
    except ConfigError as error:
        raise ModelFolderError(f"{path}: its sizes do not fit together: {error}") from None
    problems = TARGETS[kind].problems(config)
    if problems:
        raise ModelFolderError(f"{path}: {problems[0]}.")
    return TARGETS[kind], config, config.tie_embeddings


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ModelFolderError: it is missing, too large, or no JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelFolderError(f"{path} has more than {MAX_JSON_BYTES >> 20} MiB.")
        tree = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelFolderError(f"{path} is missing: expected a whole model folder.") from None
    except OSError as error:
        raise ModelFolderError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise ModelFolderError(f"{path} is damaged: it is not JSON ({error}).") from None
    if not isinstance(tree, dict):
        raise ModelFolderError(f"{path} is damaged: expected a JSON object.")
    return tree


# --- weights ----------------------------------------------------------------------------------


def _read_weights(
    folder: Path, expected: Mapping[str, tuple[int, ...]], moves: Iterable[Move], is_tied: bool
) -> Tensors:
    where = _locate(folder)
    head, table = "lm_head.weight", "model.embed_tokens.weight"
    extra = {head} if is_tied and head in where and head not in expected else set()
    for name in expected.keys() - where.keys():
        raise ModelFolderError(f"{folder}: the weights have no {name}, which its config asks for.")
    for name in sorted(where.keys() - expected.keys() - extra):
        raise ModelFolderError(
            f"{where[name]}: has {name}, which its config has no place for; reading on without it "
            "would give another model."
        )
    tensors: Tensors = {}
    for file in dict.fromkeys(where.values()):
        names = [name for name, place in where.items() if place == file]
        tensors.update(
            _read_file(file, names, expected | {name: expected[table] for name in extra})
        )
    if extra and not torch.equal(tensors.pop(head), tensors[table]):
        raise ModelFolderError(
            f"{where[head]}: {head} is not {table}, though config.json says tie_word_embeddings."
        )
    try:
        return to_ours(tensors, moves)
    except MoveError as error:
        raise ModelFolderError(f"{folder}: {error}.") from None


def _locate(folder: Path) -> dict[str, Path]:
    """The file of every tensor."""
    if (folder / INDEX).exists():
        table = read_object(folder / INDEX).get("weight_map")
        if not isinstance(table, dict) or not table:
            raise ModelFolderError(f"{folder / INDEX} is damaged: expected a weight_map in it.")
        for name, file in table.items():
            if not isinstance(file, str) or not _SHARD.fullmatch(file):
                raise ModelFolderError(
                    f"{folder / INDEX}: {name} = {file!r}: expected the name of a safetensors file "
                    "in the same folder."
                )
        stated = {name: folder / file for name, file in table.items()}
        found = {n: f for f in dict.fromkeys(stated.values()) for n in _names(f)}
        for name, file in stated.items():
            if found.get(name) != file:
                raise ModelFolderError(f"{file}: has no {name}, which {INDEX} says it has.")
        return found
    path = folder / WEIGHTS
    if path.exists():
        return dict.fromkeys(_names(path), path)
    files = sorted(p.name for p in folder.iterdir() if p.suffix in (*PICKLED, *OTHER))
    if not files:
        raise ModelFolderError(f"{path} is missing: expected weights as safetensors.")
    if any(name.endswith(PICKLED) for name in files):
        raise ModelFolderError(
            f"{folder / files[0]}: is a pickle, which can run code when it is read, so mixlab reads"
            " none. Take the safetensors of that model, or convert it where you trust it."
        )
    raise ModelFolderError(f"{folder / files[0]}: expected weights as safetensors.")


def _names(path: Path) -> list[str]:
    with _opened(path) as file:
        return list(file.keys())


def _read_file(
    path: Path, names: Iterable[str], expected: Mapping[str, tuple[int, ...]]
) -> Tensors:
    out: Tensors = {}
    with _opened(path) as file:
        for name in names:
            part = file.get_slice(name)
            shape, dtype = tuple(part.get_shape()), part.get_dtype()
            if shape != expected[name]:
                raise ModelFolderError(
                    f"{path}: {name} has the shape {shape}, and its config asks for "
                    f"{expected[name]}."
                )
            if dtype not in DTYPES:
                raise ModelFolderError(
                    f"{path}: {name} is {dtype}: expected {', '.join(DTYPES)}; mixlab reads no "
                    "quantised weights."
                )
            tensor: Tensor = file.get_tensor(name).to(torch.float32)
            if not bool(tensor.isfinite().all()):
                raise ModelFolderError(f"{path}: {name} holds numbers that are not finite.")
            out[name] = tensor
    return out


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except FileNotFoundError:
        raise ModelFolderError(f"{path} is missing: expected a whole model folder.") from None
    except (SafetensorError, OSError) as error:
        raise ModelFolderError(
            f"{path} is damaged: it is no safetensors file, or was cut short ({error})."
        ) from None


# --- tokenizer --------------------------------------------------------------------------------


def _read_tokenizer(folder: Path, config: LanguageModelConfig) -> tuple[Tokenizer, str | None]:
    path, settings_path = folder / TOKENIZER, folder / TOKENIZER_CONFIG
    if not path.exists():
        raise ModelFolderError(
            f"{path} is missing: expected the fast form of the tokenizer. In transformers, "
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) writes it."
        )
    settings = read_object(settings_path) if settings_path.exists() else {}
    for name in CODE:
        if settings.get(name):
            raise ModelFolderError(
                f"{settings_path}: {name} = {settings[name]!r}: expected no such field. It asks "
                "for code that comes with the model, and mixlab runs none."
            )
    eos = settings.get("eos_token")
    eos = eos.get("content") if isinstance(eos, dict) else eos
    try:
        tokenizer = load_tokenizer(path, eos if isinstance(eos, str) else _eos_of(folder, path))
    except DataError as error:
        raise ModelFolderError(f"{path}: {error}") from None
    if tokenizer.vocab_size > config.vocab_size:
        raise ModelFolderError(
            f"{path}: has {tokenizer.vocab_size} tokens, and the model rows for "
            f"{config.vocab_size}: expected the tokenizer of these weights."
        )
    template = settings.get("chat_template")
    beside = folder / "chat_template.jinja"
    if not isinstance(template, str) and beside.is_file():
        template = beside.read_text(encoding="utf-8", errors="replace")
    return tokenizer, template if isinstance(template, str) else None


def _eos_of(folder: Path, path: Path) -> str:
    """The token that ends a text, where the tokenizer's settings do not name it."""
    import tokenizers

    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises the bare base class for a malformed file
        raise ModelFolderError(f"{path} is not a tokenizer.json: {error}.") from None
    ids = read_object(folder / CONFIG).get("eos_token_id")
    for number in ids if isinstance(ids, list) else [ids]:
        if type(number) is int and (token := backend.id_to_token(number)):
            return token
    for name in KNOWN_EOS:
        if backend.token_to_id(name) is not None:
            return name
    raise ModelFolderError(
        f"{folder / TOKENIZER_CONFIG}: names no eos_token, and neither does {CONFIG}: expected the "
        "token that ends a text."
    )
