"""What decides the figures of a run besides its config: the code, and the text."""

import ast
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import mixlab
from mixlab.core.config import digest
from mixlab.core.provenance import checkout, package_versions

_PACKAGES = ("ops", "nn", "data", "tasks", "parallel", "training", "evals")
_FILES = (
    "jobs/train.py",
    "jobs/sitting.py",
    "jobs/session.py",
    "jobs/device.py",
    "jobs/refine/session.py",
    "studies/training_job.py",
)


@lru_cache(maxsize=1)
def code_version() -> dict[str, Any]:
    """Version, commit, and a digest of the code that decides figures, as this process runs it.

    The digest is taken of syntax trees without docstrings, so a comment changes nothing. PyTorch is
    a part of it: another release may round in another way.
    """
    root = Path(mixlab.__file__).parent
    files = [root / name for name in _FILES]
    for package in _PACKAGES:
        files += sorted((root / package).rglob("*.py"))
    trees = {
        file.relative_to(root).as_posix(): digest(_without_docstrings(file.read_text("utf-8")))
        for file in files
    }
    torch = package_versions(["torch"]).get("torch", "")
    return {
        "digest": digest({"files": trees, "torch": torch.partition("+")[0]}),
        "version": mixlab.__version__,
        "torch": torch,
        "commit": (checkout(root) or {}).get("commit"),
        "is_dirty": (checkout(root) or {}).get("is_dirty"),
    }


def _without_docstrings(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        # Docstrings of modules, classes, functions and, under a field, of settings.
        kept = [
            item
            for item in body
            if not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))
        ]
        node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.dump(tree)


def data_key(manifest: Mapping[str, Any]) -> str:
    """The address of prepared data: equal text, split and tokens give an equal key."""
    parts = ("content_hash", "split", "tokenizer", "splits", "task", "chat")
    found = {key: manifest[key] for key in parts if key in manifest}
    return digest(found or dict(manifest))
