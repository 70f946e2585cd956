"""Checkpoints: exact round trips, and every kind of damage refused by name."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mixlab.core.errors import CheckpointError
from mixlab.training import checkpoint

STATE = {"position": 17, "progress": {"step": 5, "best": None}, "text": "\u00e9"}


def tensors(fill: float = 1.0) -> dict[str, dict[str, Tensor]]:
    embedding = torch.full((4, 3), fill)
    return {
        "model": {"embed_tokens.weight": embedding, "lm_head.weight": embedding},
        "optimizer": {
            "adamw/step/a": torch.tensor(3.0),
            "half": torch.randn(3, generator=torch.Generator().manual_seed(0)).bfloat16(),
            "transposed": torch.arange(6.0).view(2, 3).t(),
            "whole": torch.arange(3),
            "flags": torch.tensor([True, False]),
            "empty": torch.zeros(0, 3),
        },
        "generators": checkpoint.collect_generators(),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints 5 and 10, of which the tests damage the second."""
    folder = tmp_path / "checkpoints"
    checkpoint.save(folder, 5, tensors(5.0), STATE)
    checkpoint.save(folder, 10, tensors(10.0), STATE)
    return folder


def refused(path: Path, match: str, good_step: int | None = 5) -> None:
    """Loading fails, names what is wrong, and offers the checkpoint of `good_step`."""
    with pytest.raises(CheckpointError, match=match) as caught:
        checkpoint.load(path)
    good = checkpoint.newest_good(path.parent)
    if good_step is None:
        assert good is None
    else:
        assert good == path.parent / f"step-{good_step:06d}"
        assert str(good) in str(caught.value)


def rewrite_manifest(path: Path, **changes: object) -> None:
    """Change the manifest as somebody would who knows how it is hashed."""
    document = json.loads((path / "checkpoint.json").read_text())
    del document["blake2b"]
    document |= changes
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    document["blake2b"] = hashlib.blake2b(text.encode(), digest_size=32).hexdigest()
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    (path / "checkpoint.json").write_text(text)


def replace_file(path: Path, name: str, data: bytes) -> None:
    """Put other bytes into a file and make the manifest agree."""
    (path / name).write_bytes(data)
    files = json.loads((path / "checkpoint.json").read_text())["files"]
    digest = hashlib.blake2b(data, digest_size=32).hexdigest()
    rewrite_manifest(path, files=files | {name: {"bytes": len(data), "blake2b": digest}})


# --- round trips ------------------------------------------------------------------------------


def test_round_trip_is_exact(tmp_path: Path) -> None:
    given_tensors = tensors()
    path = checkpoint.save(tmp_path / "new" / "checkpoints", 1234567, given_tensors, STATE)
    found = checkpoint.load(path)
    assert (found.path, found.step, found.state) == (path, 1234567, STATE)
    assert path.name == "step-1234567"
    assert found.tensors.keys() == given_tensors.keys()
    for group, members in given_tensors.items():
        assert found.tensors[group].keys() == members.keys()
        for name, tensor in members.items():
            back = found.tensors[group][name]
            assert back.dtype == tensor.dtype
            assert torch.equal(back, tensor)
    assert sorted(os.listdir(path)) == [
        "checkpoint.json", "generators.safetensors", "model.safetensors", "optimizer.safetensors",
        "state.json",
    ]  # fmt: skip


def test_tied_tensors_are_stored_once_and_come_back_as_one(folder: Path) -> None:
    model = checkpoint.load(folder / "step-000005").tensors["model"]
    assert model["embed_tokens.weight"] is model["lm_head.weight"]
    stored = safetensors.torch.load_file(folder / "step-000005" / "model.safetensors")
    assert list(stored) == ["embed_tokens.weight"]


def test_the_stock_library_reads_our_files(folder: Path) -> None:
    stored = safetensors.torch.load_file(folder / "step-000010" / "optimizer.safetensors")
    for name, tensor in tensors()["optimizer"].items():
        assert torch.equal(stored[name], tensor)


def test_a_module_restores_exactly_or_not_at_all() -> None:
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    checkpoint.load_module(second, first.state_dict())
    assert torch.equal(first.weight, second.weight)
    with pytest.raises(CheckpointError, match="'weight' is float32"):
        checkpoint.load_module(nn.Linear(2, 2), first.state_dict())


def test_generators_continue_their_streams() -> None:
    named = {"sampler": torch.Generator().manual_seed(3)}
    with torch.random.fork_rng():
        states = checkpoint.collect_generators(named)
        expected = torch.rand(4), torch.rand(4, generator=named["sampler"])
        assert checkpoint.restore_generators(states, named) == []
        assert torch.equal(torch.rand(4), expected[0])
        assert torch.equal(torch.rand(4, generator=named["sampler"]), expected[1])
        with pytest.raises(CheckpointError, match=r"named\.sampler"):
            checkpoint.restore_generators(states, {})
        with pytest.raises(CheckpointError, match=r"named\.other"):
            checkpoint.restore_generators(states, named | {"other": torch.Generator()})
        with pytest.raises(CheckpointError, match=r"torch\.cpu"):
            checkpoint.restore_generators({"torch.cpu": torch.zeros(3, dtype=torch.uint8)})
        if not torch.cuda.is_available():
            extra = checkpoint.collect_generators() | {"torch.cuda.0": states["torch.cpu"]}
            assert "torch.cuda.0" in checkpoint.restore_generators(extra)[0]


def test_saving_a_step_again_replaces_it(folder: Path) -> None:
    for fill in (10.0, 11.0):
        checkpoint.save(folder, 10, tensors(fill), STATE)
        model = checkpoint.load(folder / "step-000010").tensors["model"]
        assert model["lm_head.weight"][0, 0] == fill
    assert sorted(os.listdir(folder)) == ["step-000005", "step-000010"]


def test_steps_prune_and_best(folder: Path) -> None:
    assert checkpoint.steps(folder) == [5, 10]
    assert checkpoint.steps(folder / "nowhere") == []
    assert checkpoint.newest_good(folder / "nowhere") is None
    assert checkpoint.read_best(folder) is None
    for step, loss in ((5, 3.5), (10, 3.25)):
        checkpoint.write_best(folder, step, loss)
        assert checkpoint.read_best(folder) == (step, loss)
    assert checkpoint.prune(folder, {5}) == [10]
    assert sorted(os.listdir(folder)) == ["best.json", "step-000005"]
    assert checkpoint.prune(folder, {5, 99}) == []


@pytest.mark.parametrize("text", ["", "[]", '{"step": true, "loss_nats": 1}', '{"step": 1}', "\0"])
def test_a_damaged_best_pointer_is_named(folder: Path, text: str) -> None:
    (folder / "best.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"best\.json"):
        checkpoint.read_best(folder)


# --- damage -----------------------------------------------------------------------------------

FILES = [
    "checkpoint.json",
    "state.json",
    "model.safetensors",
    "optimizer.safetensors",
    "generators.safetensors",
]
DAMAGE = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@DAMAGE
@given(name=st.sampled_from(FILES), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(folder: Path, name: str, where: float, bit: int) -> None:
    file = folder / "step-000010" / name
    data = bytearray(original := file.read_bytes())
    data[int(where * len(data))] ^= 1 << bit
    file.write_bytes(data)
    refused(folder / "step-000010", name.replace(".", r"\.") + "|version")
    file.write_bytes(original)
    assert checkpoint.newest_good(folder) == folder / "step-000010"


@DAMAGE
@given(name=st.sampled_from(FILES), where=st.floats(0, 1, exclude_max=True))
def test_any_truncation_is_found(folder: Path, name: str, where: float) -> None:
    file = folder / "step-000010" / name
    original = file.read_bytes()
    file.write_bytes(original[: int(where * len(original))])
    refused(folder / "step-000010", name)
    file.write_bytes(original)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / "step-000010" / name).unlink()
    refused(folder / "step-000010", f"{name} is missing")


@pytest.mark.parametrize("name", ["notes.txt", "model.pt", "sub"])
def test_an_extra_file_is_named(folder: Path, name: str) -> None:
    if name == "sub":
        (folder / "step-000010" / name).mkdir()
    else:
        (folder / "step-000010" / name).write_text("x")
    refused(folder / "step-000010", f"{name} does not belong here")


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    path = folder / "step-000010"
    outside = tmp_path / "model.safetensors"
    (path / "model.safetensors").rename(outside)
    (path / "model.safetensors").symlink_to(outside)
    refused(path, "model.safetensors cannot be read")
    (folder / "step-000020").symlink_to(folder / "step-000005")
    refused(folder / "step-000020", "not a link")
    (path / "model.safetensors").unlink()
    os.mkfifo(path / "model.safetensors")
    refused(path, "model.safetensors is not a plain file")


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        checkpoint.load(tmp_path / "step-000001")
    (tmp_path / "step-000001").mkdir()
    refused(tmp_path / "step-000001", "There is no good checkpoint in", good_step=None)
    (tmp_path / "step-000002").write_text("a file")
    refused(tmp_path / "step-000002", "expected a folder", good_step=None)


def test_a_renamed_checkpoint_is_refused(folder: Path) -> None:
    (folder / "step-000010").rename(folder / "step-000099")
    refused(folder / "step-000099", "says step 10")


# --- hostile manifests ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "a/b", "..", "model.pt", "MODEL.safetensors", ".safetensors", "a\0b",
     "../step-000005/model.safetensors"],
)  # fmt: skip
def test_a_manifest_cannot_name_other_files(folder: Path, name: str) -> None:
    path = folder / "step-000010"
    files = json.loads((path / "checkpoint.json").read_text())["files"]
    rewrite_manifest(path, files=files | {name: files["state.json"]})
    refused(path, "cannot be ours")


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "10"}, {"step": -1}, {"step": True}, {"step": 10.0}, {"files": []},
        {"files": {}}, {"files": {"state.json": 1}}, {"files": {"state.json": {"bytes": 1}}},
        {"files": {"state.json": {"bytes": "1", "blake2b": ""}}},
        {"files": {"state.json": {"bytes": 1, "blake2b": None}}}, {"tied": []},
        {"tied": {"model": []}}, {"tied": {"model": {"a": 1}}}, {"extra": 1}, {"version": 2},
        {"version": None}, {"format": "pickle"}, {"tied": {"model": {"x": "nowhere"}}},
        {"tied": {"model": {"embed_tokens.weight": "embed_tokens.weight"}}},
    ],
)  # fmt: skip
def test_wrong_types_in_a_manifest_with_a_right_hash(
    folder: Path, changes: dict[str, object]
) -> None:
    rewrite_manifest(folder / "step-000010", **changes)
    refused(folder / "step-000010", r"checkpoint\.json|version")


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[1]", b"{", b"\xff\xfe", b"[" * 200_000, b'{"a":' * 100_000, b"1" * 5000,
     b'{"format": "mixlab checkpoint", "version": NaN}'],
)  # fmt: skip
def test_other_json_than_ours(folder: Path, data: bytes) -> None:
    (folder / "step-000010" / "checkpoint.json").write_bytes(data)
    refused(folder / "step-000010", r"checkpoint\.json|version")


def test_a_huge_manifest_is_not_read(folder: Path) -> None:
    with open(folder / "step-000010" / "checkpoint.json", "r+b") as file:
        file.truncate(2**40)  # a sparse file: nothing is written
    refused(folder / "step-000010", "too large to be ours")


@pytest.mark.parametrize("data", [b"[]", b"{", b"[" * 200_000, b"7"])
def test_a_state_that_is_no_object(folder: Path, data: bytes) -> None:
    replace_file(folder / "step-000010", "state.json", data)
    refused(folder / "step-000010", r"state\.json")


def header(text: bytes, payload: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + payload


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x80\x04K\x01.", (2**62).to_bytes(8, "little"), header(b"{"), header(b"[]"),
        header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', b"1234"),
        header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}', b"1234"),
        header(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}', b"1234"),
        header(b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', b"1234"),
        header(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'),
    ],
)  # fmt: skip
def test_lying_tensor_headers(folder: Path, data: bytes) -> None:
    replace_file(folder / "step-000010", "model.safetensors", data)
    rewrite_manifest(folder / "step-000010", tied={})
    refused(folder / "step-000010", r"model\.safetensors is not a safetensors file")


# --- saves that fail --------------------------------------------------------------------------


@pytest.mark.parametrize("n_calls", range(7))
def test_a_full_disk_loses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, n_calls: int
) -> None:
    calls = iter(range(100))
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        if next(calls) >= n_calls:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(CheckpointError, match=r"No space left.*step-0000(10|20)\."):
        checkpoint.save(folder, 20, tensors(20.0), STATE)
    with pytest.raises(CheckpointError, match=r"No space left"):
        checkpoint.write_best(folder, 20, 1.0)
    monkeypatch.undo()
    assert checkpoint.load(folder / "step-000010").tensors["model"]["lm_head.weight"][0, 0] == 10
    # The rename may have happened before the last sync failed; a part never counts.
    assert set(checkpoint.steps(folder)) - {5, 10} in (set(), {20})
    checkpoint.save(folder, 20, tensors(20.0), STATE)
    assert checkpoint.newest_good(folder) == folder / "step-000020"


@pytest.mark.parametrize("name", ["rename", "mkdir"])
def test_a_refused_replacement_keeps_the_earlier_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refusing(source: object, *rest: object, **settings: object) -> None:
        if ".tmp-" in str(source):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return original(source, *rest, **settings)

    original = getattr(os, name)
    monkeypatch.setattr(os, name, refusing)
    with pytest.raises(CheckpointError, match="Read-only file system"):
        checkpoint.save(folder, 10, tensors(11.0), STATE)
    assert sorted(os.listdir(folder)) == ["step-000005", "step-000010"]
    assert checkpoint.load(folder / "step-000010").tensors["model"]["lm_head.weight"][0, 0] == 10


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match="could not be written: File exists"):
        checkpoint.save(tmp_path / "checkpoints", 1, tensors(), STATE)
