"""Imports go downwards only, and what must stay light stays light."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import mixlab

TENSORS = {
    "ops", "parallel", "data", "nn", "training", "infer", "evals", "export", "checks", "tasks"
}  # fmt: skip
ALLOWED = {
    "core": set(),
    "ops": {"core"},
    "parallel": {"core"},
    "data": {"core", "tasks"},
    "nn": {"core", "ops"},
    "training": {"core", "ops", "parallel", "data", "nn"},
    "infer": {"core", "ops", "data", "nn"},
    "evals": {"core", "ops", "parallel", "data", "nn", "infer", "tasks"},
    "export": {"core", "ops", "data", "nn", "infer"},
    "tasks": {"core"},
    "checks": {"core", "ops", "data", "nn", "infer", "evals", "training", "tasks"},
    "stats": {"core"},
    "report": {"core", "stats"},
    "jobs": {"core", "report"} | TENSORS,
    "studies": {"core", "stats", "report", "jobs"} | TENSORS,
    "serve": {"core", "data", "nn", "infer", "jobs"},
    "cli": {"serve", "core", "stats", "jobs", "report", "studies"},
}
ROOT = Path(mixlab.__file__).parent
# Readers of files that must not need torch: NumPy does there, so that data can be prepared and
# reports written by a process that never pays for loading it.
NUMPY_ONLY = {"core", "report", "data", "tasks", "stats"}
MAY_USE_TORCH = {"data/batch.py", "data/loader.py", "data/synthetic.py"}


@functools.cache
def nodes(file: Path) -> list[ast.AST]:
    """Everything that a file is made of."""
    return list(ast.walk(ast.parse(file.read_text())))


def imports(file: Path):
    """(line, module) of every import in a file, at any depth."""
    for node in nodes(file):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module
            if node.module == "mixlab":
                yield from ((node.lineno, f"mixlab.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)


def files():
    return sorted(file for file in ROOT.glob("*/**/*.py"))


def test_imports_follow_the_layers():
    wrong = []
    for file in files():
        here = file.relative_to(ROOT).parts[0]
        for line, module in imports(file):
            there = module.split(".")[1] if module.startswith("mixlab.") else here
            if (ROOT / there).is_dir() and there != here and there not in ALLOWED[here]:
                wrong.append(f"{file.relative_to(ROOT)}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_every_package_has_its_layer():
    packages = {p.name for p in ROOT.iterdir() if p.is_dir() and any(p.glob("*.py"))}
    assert packages == set(ALLOWED) & packages, packages - set(ALLOWED)


def test_torch_stays_out_of_core_data_and_report():
    wrong = []
    for file in files():
        name = file.relative_to(ROOT).as_posix()
        if name.split("/")[0] in NUMPY_ONLY and name not in MAY_USE_TORCH:
            wrong += [
                f"{name}:{n}" for n, module in imports(file) if module.split(".")[0] == "torch"
            ]
    assert not wrong, wrong


def test_environment_variables_are_read_by_jobs_and_cli_only():
    wrong = [
        file.relative_to(ROOT).as_posix()
        for file in files()
        if file.relative_to(ROOT).parts[0] not in ("jobs", "cli", "core", "data")
        and file.parent != ROOT / "studies" / "executors"  # they hand it on to processes
        and ("os.environ" in file.read_text() or "getenv" in file.read_text())
    ]
    assert not wrong, wrong


def test_float64_is_never_narrowed_in_ops_and_layers():
    wrong = [
        file.relative_to(ROOT).as_posix()
        for file in files()
        if file.relative_to(ROOT).parts[0] in ("ops", "nn")
        and any(
            isinstance(node, ast.Attribute)
            and node.attr == "float"
            and not (isinstance(node.value, ast.Name) and node.value.id == "torch")
            for node in nodes(file)
        )
    ]
    assert not wrong, wrong


def test_light_packages_load_without_torch():
    code = """
import sys
import mixlab, mixlab.core.config, mixlab.core.run_dir, mixlab.core.recipes
import mixlab.report.markdown, mixlab.report.plots, mixlab.data.prepare, mixlab.cli.main
assert "torch" not in sys.modules, "torch was loaded"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_nothing_is_pickled():
    """Checkpoints and caches hold data, never code."""
    banned = {"pickle", "dill", "cloudpickle", "joblib", "shelve"}
    wrong = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in files()
        for line, module in imports(file)
        if module.split(".")[0] in banned
    ]
    wrong += [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in files()
        for node in nodes(file)
        if isinstance(node, ast.Attribute) and node.attr in ("load", "save")
        if isinstance(node.value, ast.Name) and node.value.id == "torch"
    ]
    assert not wrong, wrong
