"""A tiny corpus, a tiny recipe, and two ways to run it: in this process, and as a command."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import pytest
from fork_server import ForkServer
from screens import Quiet
from spared import PICTURES, RATE
from tiny_text import write_corpus

# A busy machine is no failure: no example has a deadline.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

RECIPE = """\
about: A model so small that training it takes a moment.
seed: 3
data:
  corpus: {{kind: text, path: "{corpus}", document: file}}
  tokenizer: {{kind: bpe, vocab_size: 300}}
  seq_len: 16
model:
  vocab_size: 300
  d_model: 16
  n_layers: 1
  max_seq_len: 64
  blocks:
    full:
      sequence_mixer: {{kind: attention, n_heads: 2, head_dim: 8}}
      channel_mixer: {{kind: mlp, d_ff: 24}}
train:
  length: 12 steps
  batch_size: 4
  optimizer: {{kind: adamw, lr: 0.01}}
  device: cpu
  precision: fp32
  threads: 1
eval: {{every: 4, n_tokens: 256, batch_size: 8}}
checkpoint: {{every: 5}}
sample: {{n: 1, max_new_tokens: 4}}
checks: "off"  # which take longer than the training; tests of checks ask for them
"""


def pytest_collection_finish() -> None:
    """What is there when tests begin stays: looking through it again and again takes time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests: the tiny corpus is prepared, and kernels are compiled, once."""
    own = tmp_path_factory.getbasetemp()
    # Workers have folders of their own below that of the whole run.
    path = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cache"
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_run(shared_cache: Path) -> Iterator[None]:
    """Nothing is read from or left in the cache of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXLAB_CACHE", str(shared_cache))
        yield


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def tiny_recipe(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny.yaml: one layer of width 16, 12 steps, saved every 5 and evaluated every 4."""
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    path.write_text(RECIPE.format(corpus=tiny_corpus))
    return path


@pytest.fixture
def quiet() -> Quiet:
    return Quiet()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and a matrix rate that is not timed."""
    monkeypatch.chdir(tmp_path)
    for name, stand_in in RATE.items():
        monkeypatch.setattr(name, stand_in)
    return tmp_path


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pictures and the report: other tests look at those."""
    for name in (*PICTURES, "mixlab.jobs.finish.write_report"):
        monkeypatch.setattr(name, lambda run: None)


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Runs `mixlab ...` as a process of its own, without the seconds that loading torch takes."""
    server = ForkServer(tmp_path_factory.mktemp("commands"))
    yield server
    server.close()
