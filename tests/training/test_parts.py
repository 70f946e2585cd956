"""Checkpoints in parts are read as a whole, or refused by name."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from mixlab.core.errors import CheckpointError
from mixlab.training import checkpoint, manifest, tensor_file
from mixlab.training.parts import part_name

WHOLE = {"matrix": torch.arange(15.0).view(5, 3), "one row": torch.arange(2.0).view(1, 2),
         "norm": torch.ones(3)}  # fmt: skip
ROWS = ["matrix", "one row"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Two ranks' parts of a group, uneven as rows are, beside a group that is whole."""
    files = {}
    with checkpoint.being_saved(tmp_path, 7) as folder:
        own = [
            {"matrix": WHOLE["matrix"][:3], "one row": WHOLE["one row"], "norm": WHOLE["norm"]},
            {"matrix": WHOLE["matrix"][3:], "one row": WHOLE["one row"][1:]},
        ]
        for rank, members in enumerate(own):
            name = part_name("model", rank, 2)
            files[name] = checkpoint.write_synced(folder / name, tensor_file.encode(members))
        name = "generators.safetensors"
        encoded = tensor_file.encode({"torch.cpu": torch.zeros(4, dtype=torch.uint8)})
        files[name] = checkpoint.write_synced(folder / name, encoded)
        parts = {"model": {"n": 2, "rows": ROWS}}
        checkpoint.finish_files(folder, 7, files, {"answer": 42}, tied={}, parts=parts)
    return checkpoint.step_path(tmp_path, 7)


def rewrite(path: Path, **changes: object) -> None:
    """Change the manifest as somebody would who knows how it is hashed."""
    document = json.loads((path / "checkpoint.json").read_text())
    del document["blake2b"]
    document |= changes
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    document["blake2b"] = hashlib.blake2b(text.encode(), digest_size=32).hexdigest()
    (path / "checkpoint.json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def test_parts_come_back_as_one(saved):
    found = checkpoint.load(saved)
    assert found.state == {"answer": 42} and found.tensors.keys() == {"model", "generators"}
    model = found.tensors["model"]
    assert model.keys() == WHOLE.keys()
    assert all(torch.equal(model[name], WHOLE[name]) for name in WHOLE)


def test_a_lost_part_is_named(saved):
    (saved / "model.part2of2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.part2of2\.safetensors is missing"):
        checkpoint.load(saved)


def test_an_altered_part_is_named(saved):
    path = saved / "model.part1of2.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=r"model\.part1of2\.safetensors was altered"):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"model": {"n": 3, "rows": ROWS}}, "not a part that checkpoint.json tells of"),
        ({"model": {"n": 2, "rows": ["matrix", "norm"]}}, "the parts of model do not fit"),
        ({"model": {"n": 2, "rows": "matrix"}}, "malformed table of parts"),
        ({"other": {"n": 2, "rows": []}}, "not a part that checkpoint.json tells of"),
        ({"model": {"n": 2, "rows": ROWS}, "ema": {"n": 1, "rows": []}}, "part 1 of ema"),
        ([], "malformed table of parts"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(saved, parts, why):
    rewrite(saved, parts=parts)
    with pytest.raises(CheckpointError, match=why):
        checkpoint.load(saved)


def test_checkpoints_without_parts_stay_as_they_were(tmp_path):
    """So that any earlier program reads them."""
    path = checkpoint.save(tmp_path, 1, {"model": WHOLE}, {})
    document = json.loads((path / "checkpoint.json").read_text())
    assert document["version"] == 1 and "parts" not in document
    assert manifest.decode((path / "checkpoint.json").read_bytes())["parts"] == {}
