"""The tokenizer and the description of the data in a run folder, held against each other."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixlab.core.errors import DataError, RunError
from mixlab.core.run_dir import RunDir
from mixlab.data.prepare import PreparedData
from mixlab.data.tokenizers.base import Tokenizer, load_tokenizer
from mixlab.jobs.config import AnyRunConfig, RunConfig
from mixlab.jobs.screen import Screen

FILE = "tokenizer.json"
BASE = "base_tokenizer.json"
"""The tokenizer that a tuned run began with, before it got a template's special tokens."""


def at_home(config: AnyRunConfig, folder: Path) -> AnyRunConfig:
    """The config for preparing data, with a tokenizer that lies in the run folder found there.

    A run names such a file without its folder, so that it can be moved and renamed.
    """
    if not isinstance(config, RunConfig) or config.data.tokenizer.kind != "file":
        return config
    tokenizer = config.data.tokenizer
    if tokenizer.path != BASE or not (folder / BASE).is_file():
        return config
    found = tokenizer.model_copy(update={"path": str(folder / BASE)})
    return config.model_copy(update={"data": config.data.model_copy(update={"tokenizer": found})})


def changed_facts(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys of data.json in which two descriptions differ in what is trained on.

    A tokenizer is known by its content: the path to it may differ.
    """

    def facts(manifest: Mapping[str, Any], key: str) -> Any:
        found = manifest.get(key)
        if key == "tokenizer" and isinstance(found, Mapping):
            return {name: value for name, value in found.items() if name != "config"}
        return found

    keys = ("content_hash", "tokenizer", "splits")
    return [key for key in keys if facts(before, key) != facts(now, key)]


def open_tokenizer(run: RunDir) -> Tokenizer:
    """The tokenizer that the run's weights were trained with.

    Raises:
        RunError: tokenizer.json or data.json is missing or damaged, or they do not belong together.
    """
    facts = _recorded(run)
    if facts is None:
        raise RunError(
            f"{run.data_path} is missing, so nothing says which tokenizer the weights were trained "
            "with. Restore it from a copy of the run folder."
        )
    path = run.path / FILE
    problem = _problem(run, facts)
    if problem is not None:
        raise RunError(
            f"{path} {problem}, so ids would not stand for the text that the weights have learnt. "
            "Restore it from a copy of the run folder; resuming or extending a run writes it anew."
        )
    return load_tokenizer(path, facts["eos"])


def repair_description(run: RunDir, data: Any, screen: Screen) -> None:
    """Write data.json and tokenizer.json anew where they are missing or altered, and say so.

    To be called once the run's text is known to be that of `data`.

    Raises:
        RunError: data.json is lost and tokenizer.json is not the text's, so one of them is wrong.
    """
    facts = data.manifest.get("tokenizer") if isinstance(data, PreparedData) else None
    problem = None if facts is None else _problem(run, facts)
    if not run.data_path.exists():
        if problem is not None and (run.path / FILE).exists():
            raise RunError(
                f"run {run.path}: data.json is missing, and {FILE} {problem}. The text may have "
                "changed since the run began. Restore both files from a copy of the run folder, or "
                "start a new run."
            )
        run.write_json("data.json", data.manifest)
        screen.note(
            f"{run.data_path} was missing and is written anew; that the text is still the one of "
            "the first steps could not be checked."
        )
    if problem is not None:
        run.write_text(FILE, data.tokenizer.to_json())
        screen.note(f"{run.path / FILE} {problem}; it is written anew from the run's text.")


def _recorded(run: RunDir) -> dict[str, Any] | None:
    """What data.json says of the tokenizer; None if there is no data.json."""
    manifest = run.read_json("data.json")
    if manifest is None:
        return None
    facts = manifest.get("tokenizer") if isinstance(manifest, dict) else None
    if not isinstance(facts, dict) or not {"hash", "eos"} <= facts.keys():
        raise RunError(
            f"{run.data_path} is damaged: expected tokenizer.hash and tokenizer.eos in it. "
            "Restore it from a copy of the run folder."
        )
    return facts


def _problem(run: RunDir, facts: dict[str, Any]) -> str | None:
    """What is wrong with tokenizer.json, as the end of a sentence about it."""
    path = run.path / FILE
    if not path.exists():
        return "is missing"
    try:
        found = content_hash(path.read_text(encoding="utf-8"), facts["eos"])
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except ValueError:
        return "is damaged"
    if found != facts["hash"]:
        return "is not the run's tokenizer (data.json has tokenizer.hash of another one)"
    try:
        load_tokenizer(path, facts["eos"])
    except DataError:
        return "is damaged"
    return None


def content_hash(text: str, eos: str) -> str:
    """`Tokenizer.hash` of a saved tokenizer, from the file's own text.

    Not from a loaded one: another version of the library may write the same tokenizer otherwise.
    """
    canonical = json.dumps([json.loads(text), eos], sort_keys=True)
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()
