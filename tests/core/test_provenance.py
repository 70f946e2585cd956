import json
import shlex
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from mixlab.core import provenance


def test_environment_tells_machine_versions_and_command():
    found = provenance.environment("mixlab train quickstart", {"device": "cpu", "n_threads": 2})
    assert json.loads(json.dumps(found)) == found
    assert found["command"] == "mixlab train quickstart"
    assert found["accelerator"] == {"device": "cpu", "n_threads": 2}
    assert found["packages"]["numpy"] == np.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert datetime.fromisoformat(found["started_utc"]).utcoffset().total_seconds() == 0
    assert 1 <= found["cpu"]["n_usable_cores"] <= found["cpu"]["n_cores"]
    assert found["cpu"]["model"]


def test_environment_needs_no_torch():
    code = (
        "import sys; from mixlab.core.provenance import environment; environment('x');"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["/opt/venv/bin/mixlab", "train", "quickstart"], "mixlab train quickstart"),
        (["C/Scripts/mixlab.exe", "list"], "mixlab list"),
        (["my study.py", "--fast"], "python 'my study.py' --fast"),
        (
            ["mixlab", "train", "data.corpus.path=a b.txt"],
            "mixlab train 'data.corpus.path=a b.txt'",
        ),
    ],
)
def test_command_line_can_be_pasted(argv, text):
    assert provenance.command_line(argv) == text
    assert shlex.split(text)[-len(argv[1:]) :] == argv[1:]


def test_command_line_of_a_module_names_the_module(tmp_path: Path):
    package = tmp_path / "outer" / "inner"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package.parent / "__init__.py").touch()
    argv = [str(package / "__main__.py"), "train"]
    assert provenance.command_line(argv) == "python -m outer.inner train"


def _git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_checkout_gives_commit_and_dirty_flag(tmp_path: Path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "a.py").write_text("1\n")
    assert provenance.checkout(package) is None  # no repository yet
    _git(tmp_path, "init", "-q")
    assert provenance.checkout(package) is None  # no commit yet
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-q", "-m", "x")
    commit = _git(tmp_path, "rev-parse", "HEAD")
    assert provenance.checkout(package) == {"commit": commit, "is_dirty": False}
    (package / "a.py").write_text("2\n")
    assert provenance.checkout(package) == {"commit": commit, "is_dirty": True}


def test_a_package_installed_inside_another_project_has_no_commit(tmp_path: Path):
    installed = tmp_path / ".venv" / "site-packages" / "package"
    installed.mkdir(parents=True)
    (installed / "a.py").touch()
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-q", "-m", "x")
    assert provenance.checkout(installed) is None


def test_no_git_on_the_machine(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.checkout(tmp_path) is None
