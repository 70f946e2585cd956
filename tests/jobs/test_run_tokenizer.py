"""A run's tokenizer is the one that its weights were trained with, or an error."""

import json
import signal

import pytest
from tiny_runs import Signalling

from mixlab.core.errors import RunError
from mixlab.data.tokenizers.base import load_tokenizer
from mixlab.jobs.run_tokenizer import content_hash
from mixlab.jobs.trained import open_trained


@pytest.fixture
def stopped(train_tiny):
    return train_tiny(screen=Signalling(6, signal.SIGINT)).run


def swap_two_ids(path):
    tree = json.loads(path.read_text())
    vocab = tree["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(tree))


CHANGES = {
    "is missing": lambda path: path.unlink(),
    "is damaged": lambda path: path.write_bytes(b"\xff{"),
    "is not the run's tokenizer": swap_two_ids,
}


@pytest.mark.parametrize("problem", CHANGES)
def test_a_lost_or_altered_tokenizer(problem, stopped, resume, quiet):
    path = stopped.path / "tokenizer.json"
    before = path.read_text()
    CHANGES[problem](path)
    with pytest.raises(RunError, match=rf"tokenizer\.json {problem}"):
        open_trained(stopped.path)
    assert resume(stopped.path).status == "finished"
    assert path.read_text() == before
    assert any(problem in note and "written anew" in note for note in quiet.notes)
    assert open_trained(stopped.path).generate("abc", max_new_tokens=3) is not None


def test_a_lost_description_of_the_data(stopped, resume, quiet):
    before = json.loads(stopped.data_path.read_text())
    stopped.data_path.unlink()
    with pytest.raises(RunError, match=r"data\.json is missing"):
        open_trained(stopped.path)
    swap_two_ids(stopped.path / "tokenizer.json")
    with pytest.raises(RunError, match=r"data.json is missing, and tokenizer.json is not the"):
        resume(stopped.path)
    (stopped.path / "tokenizer.json").unlink()
    assert resume(stopped.path).status == "finished"
    after = json.loads(stopped.data_path.read_text())
    assert (after["tokenizer"], after["splits"]) == (before["tokenizer"], before["splits"])
    for text in ("[]", "{}"):
        stopped.data_path.write_text(text)
        with pytest.raises(RunError, match=r"data\.json is damaged"):
            open_trained(stopped.path)


def test_the_files_hash_is_the_tokenizers(stopped):
    path = stopped.path / "tokenizer.json"
    eos = json.loads(stopped.data_path.read_text())["tokenizer"]["eos"]
    assert content_hash(path.read_text(), eos) == load_tokenizer(path, eos).hash
