"""Saves cut short at every system call that matters: an earlier checkpoint always stays good.

The children die by `os._exit`, without clean-up, as with SIGKILL. They are forked from one process
that has torch loaded, since starting Python for each would take minutes.
"""

import os
import resource
import textwrap
from pathlib import Path

import pytest
from fork_server import ForkServer

from mixlab.core.errors import CheckpointError
from mixlab.training import checkpoint

CHILDREN = textwrap.dedent(
    """
    import os, sys
    from pathlib import Path
    import torch
    from mixlab.training import checkpoint

    torch.set_num_threads(1)  # forked children have no thread pool

    def tensors(fill):
        return {"model": {"w": torch.full((4, 3), float(fill))}, "ema": {"w": torch.zeros(2)}}

    def dying(name, count):
        original = getattr(os, name)
        def call(*args, **kwargs):
            count[0] -= 1
            if count[0] == 0:
                os._exit(9)
            return original(*args, **kwargs)
        return call

    def job(what, folder):
        if what == "new":
            checkpoint.save(folder, 3, tensors(3), {"n": 3})
        elif what == "again":
            checkpoint.save(folder, 2, tensors(20), {"n": 20})
        else:
            checkpoint.prune(folder, {2})

    root = Path(sys.argv[1])
    for what in ("new", "again", "prune"):
        for n in range(1, 60):
            folder = root / what / f"{n:02d}"
            checkpoint.save(folder, 1, tensors(1), {"n": 1})
            checkpoint.save(folder, 2, tensors(2), {"n": 2})
            child = os.fork()
            if child == 0:
                count = [n]
                for name in ("fsync", "rename", "replace", "open", "unlink", "rmdir", "mkdir"):
                    setattr(os, name, dying(name, count))
                job(what, folder)
                os._exit(0)
            if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
                break
        else:
            sys.exit("the job never finished")
        print(what, n)
    """
)


def fill_of(folder: Path, step: int) -> float:
    found = checkpoint.load(checkpoint.step_path(folder, step))
    assert found.state == {"n": found.tensors["model"]["w"][0, 0].item()}
    return found.state["n"]


@pytest.fixture(scope="module")
def killed(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("killed")
    script = tmp_path_factory.mktemp("script") / "children.py"
    script.write_text(CHILDREN)
    done = fork_server.run([root], cwd=root, script=str(script))
    assert done.code == 0, done.stderr
    return root


def test_a_new_checkpoint_is_complete_or_absent(killed: Path) -> None:
    folders = sorted((killed / "new").iterdir())
    assert len(folders) > 10  # so many places to die at, and one child that finished
    for folder in folders:
        assert (fill_of(folder, 1), fill_of(folder, 2)) == (1, 2)
        if 3 in checkpoint.steps(folder):
            assert fill_of(folder, 3) == 3
    assert 3 not in checkpoint.steps(folders[0])
    assert 3 in checkpoint.steps(folders[-1])


def test_a_replaced_checkpoint_is_the_old_or_the_new_one(killed: Path) -> None:
    seen = []
    for folder in sorted((killed / "again").iterdir()):
        assert fill_of(folder, 1) == 1
        assert checkpoint.newest_good(folder) == checkpoint.step_path(folder, 2)
        seen.append(fill_of(folder, 2))
    assert seen == sorted(seen)
    assert set(seen) == {2, 20}


def test_pruning_never_leaves_a_part(killed: Path) -> None:
    for folder in sorted((killed / "prune").iterdir()):
        assert fill_of(folder, 2) == 2
        if 1 in checkpoint.steps(folder):
            assert fill_of(folder, 1) == 1


@pytest.mark.parametrize("what", ["new", "again", "prune"])
def test_the_next_save_clears_what_was_left(killed: Path, what: str) -> None:
    import torch

    for folder in sorted((killed / what).iterdir()):
        before = {step: fill_of(folder, step) for step in checkpoint.steps(folder)}
        checkpoint.save(folder, 4, {"model": {"w": torch.full((4, 3), 4.0)}}, {"n": 4})
        after = {step: fill_of(folder, step) for step in checkpoint.steps(folder)}
        assert after == before | {4: 4}
        assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_a_file_size_limit_of_the_system_is_reported(tmp_path: Path) -> None:
    import torch

    small, large = torch.zeros(4), torch.zeros(100_000)
    checkpoint.save(tmp_path, 1, {"model": {"w": small}}, {"n": 0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"File too large.*step-000001\."):
            checkpoint.save(tmp_path, 2, {"model": {"w": large}}, {"n": 0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["step-000001"]
    checkpoint.save(tmp_path, 2, {"model": {"w": large}}, {"n": 0})
