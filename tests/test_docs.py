"""The documentation is true: its commands run, its output is real, its keys and links exist.

Every block of code in README, CONTRIBUTING and docs/ carries a comment that says how it is tested:

    test: run                 each command is run, or the Python code executed, in a folder with a
                              tiny finished run under runs/quickstart, and one under
                              runs/sudoku-4x4 where the block names it; training itself is left
                              out of Python code: `mixlab.train` hands back that run
    test: parse               each command is parsed, and its config decoded; nothing is trained
    test: recipe FILE         a complete recipe, which other blocks know under that name
    test: study FILE          a complete study file; test: claim FILE likewise
    test: merge RECIPE        a part of a config that changes a recipe
    test: output of COMMAND   exactly what the command prints
    test: error of COMMAND    exactly how the command fails, with exit status 2
    test: served              Python code that talks to `mixlab serve runs/quickstart` at port 8000
    test: file PATH, test: entry PATH, test: extended    see test_a_mixer_can_be_added
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer.main
from pydantic_core import PydanticUndefined
from screens import Quiet
from spared import PICTURES, RATE
from tiny_text import write_corpus

from mixlab.checks import CHECKS
from mixlab.cli.main import app, main
from mixlab.core.config import Config, _models, decode, merge, parse_yaml
from mixlab.core.recipes import list_recipes, load_recipe
from mixlab.core.units import count, flops
from mixlab.jobs import api
from mixlab.jobs.config import RefineRunConfig, RunConfig, load_config
from mixlab.jobs.show import describe_recipe
from mixlab.jobs.smoke import load_shrunk
from mixlab.jobs.train import start_run
from mixlab.nn.budget import model_budget
from mixlab.nn.recursion.refiner import refiner_budget
from mixlab.studies.arms import arm_specs
from mixlab.studies.claims.claim_file import load_claim
from mixlab.studies.study_file import load_study

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))

TINY = [
    "data.corpus.kind=text", "data.corpus.path=text", "data.corpus.document=file",
    "data.tokenizer.vocab_size=300", "data.seq_len=16", "model.vocab_size=300", "model.d_model=16",
    "model.n_layers=1", "model.blocks.full.sequence_mixer.head_dim=8",
    "model.blocks.full.channel_mixer.d_ff=24", "train.length=8 steps", "train.batch_size=4",
    "train.device=cpu", "train.precision=fp32", "eval.every=4", "eval.n_tokens=256",
    "checkpoint.every=4", "sample.n=1", "sample.max_new_tokens=4", "train.threads=1",
]  # fmt: skip
TINY_PUZZLES = [
    "data.n_train=48", "data.n_validation=8", "data.n_test=32", "model.d_model=16",
    "model.block.sequence_mixer={kind: attention, n_heads: 2, head_dim: 4}",
    "model.block.channel_mixer.d_ff=24", "train.length=4 steps", "train.batch_size=4",
    "train.device=cpu", "train.precision=fp32", "train.threads=1", "checks=off",
]  # fmt: skip


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    test: str  # what the comment before the block says; empty if there is none
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def find_blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    start = None
    for i, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = i
            continue
        comment = re.fullmatch(r"<!-- test: (.*) -->", lines[start - 1])
        text = "\n".join(lines[start + 1 : i]) + "\n"
        test = comment[1] if comment else ""
        yield Block(page, start + 1, lines[start][3:], test, text)
        start = None
    assert start is None, f"{page}: a block is not closed"


BLOCKS = [block for page in PAGES for block in find_blocks(page)]


def blocks(language: str | None, test: str) -> list[Any]:
    """Parameters for pytest: the blocks of a language whose test begins with a word."""
    return [
        pytest.param(block, id=block.where)
        for block in BLOCKS
        if language in (None, block.language) and block.test.split(" ")[0] == test
    ]


def commands(text: str) -> list[list[str]]:
    """The words of every command of a shell block, without settings of the environment."""
    found = []
    for line in text.splitlines():
        for part in line.split(" && "):
            words = shlex.split(part, comments=True)
            if {"<", ">"} & set(words):  # the shell's own part
                words = words[: min(i for i, word in enumerate(words) if word in ("<", ">"))]
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words = words[1:]
            if words[:1] == ["torchrun"]:  # which starts it several times
                words = words[words.index("mixlab") :]
            if words:
                found.append([words[0].removeprefix(".venv/bin/"), *words[1:]])
    return found


def page_text(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


# --- a folder as the reader has it ----------------------------------------------------------------


@pytest.fixture(scope="module")
def readers_folder(shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The recipes of the pages as files, some text, and a finished run under runs/quickstart."""
    folder = tmp_path_factory.mktemp("reader")
    for block in BLOCKS:
        if block.test.split(" ")[0] in ("recipe", "study", "claim"):
            (folder / block.test.split(" ")[1]).write_text(block.text, encoding="utf-8")
    write_corpus(folder / "text")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MIXLAB_CACHE", str(shared_cache))
        for name, stand_in in {**RATE, **PICTURES}.items():
            patch.setattr(name, stand_in)
        start_run("quickstart", TINY, run_dir=Path("runs/quickstart"), screen=Quiet())
        if any("runs/sudoku-4x4" in b.text for b in BLOCKS if b.test == "run"):
            start_run("sudoku-4x4", TINY_PUZZLES, run_dir=Path("runs/sudoku-4x4"), screen=Quiet())
        yield folder


def run_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit status of `mixlab ...`, in this process."""
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


# --- blocks ---------------------------------------------------------------------------------------


def test_every_block_says_how_it_is_tested():
    untested = [b.where for b in BLOCKS if b.language in ("sh", "python", "yaml") and not b.test]
    unnamed = [b.where for b in BLOCKS if b.language not in ("sh", "python", "yaml", "text")]
    assert not untested and not unnamed
    known = {"run", "parse", "recipe", "merge", "output", "error", "file", "entry", "extended", ""}
    known |= {"study", "claim", "served"}
    assert {b.test.split(" ")[0] for b in BLOCKS} <= known


def parse(words: list[str]) -> None:
    """Let the command line read a command, and decode the config that it names."""
    name, *arguments = words[1:]
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    if hasattr(command, "commands"):  # such as `mixlab study run`
        command = command.commands[arguments[0]]
        given = command.make_context(arguments[0], arguments[1:]).params
        check_names(given)
        return
    given = command.make_context(name, arguments).params
    recipe, overrides = given.get("recipe"), list(given.get("overrides") or [])
    if name == "train" and given["resume"] is None:
        (load_shrunk if given["smoke"] else load_config)(recipe, overrides)
    elif name in ("show", "check") and not recipe.startswith("runs/"):
        describe_recipe(recipe, overrides)
    elif name == "compare":
        things = [word for word in given["things"] or [] if "=" not in word]
        changes = [word for word in given["things"] or [] if "=" in word]
        for thing in things if not any(thing.startswith("runs/") for thing in things) else []:
            load_config(thing, changes)


def check_names(given: dict[str, Any]) -> None:
    """The study or claim that a command names exists, unless it is named by its folder."""
    if given.get("claim"):
        load_claim(given["claim"])
    if given.get("study") and not str(given["study"]).startswith("studies/"):
        load_study(given["study"])


def check_other(words: list[str]) -> None:
    """Commands of other programs: what they name must exist."""
    program, *arguments = words
    if program == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert re.search(rf"^{arguments[0]}:", makefile, re.M), f"no target {arguments[0]}"
    elif program in ("pip", "python"):
        for extras in re.findall(r"\[([\w,]+)\]", " ".join(arguments)):
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            assert set(extras.split(",")) <= set(project["optional-dependencies"])
        files = [a for a in arguments if "/" in a or a.endswith((".txt", ".py"))]
        files = [file for file in files if not file.startswith("runs/")]  # the reader's own
        assert all((ROOT / file).exists() for file in files), files
    else:
        assert program in ("ruff", "tensorboard"), f"{program}: not known to this test"


@pytest.mark.parametrize("block", blocks("sh", "parse") + blocks("sh", "run"))
def test_commands_are_accepted(block: Block, readers_folder: Path):
    for words in commands(block.text):
        parse(words) if words[0] == "mixlab" else check_other(words)


@pytest.mark.parametrize("block", blocks("sh", "run"))
def test_commands_run(block, readers_folder, monkeypatch, capsys):
    for words in commands(block.text):
        assert run_command(words, monkeypatch) == 0, words
        assert capsys.readouterr().out.strip(), words


@pytest.mark.parametrize("block", blocks("text", "output"))
def test_output_is_real(block, readers_folder, monkeypatch, capsys):
    words = shlex.split(block.test.removeprefix("output of "))
    assert run_command(words, monkeypatch) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.rstrip().splitlines()]
    assert block.text.splitlines() == printed


@pytest.mark.parametrize("block", blocks("text", "error"))
def test_error_is_real(block, readers_folder, monkeypatch, capsys):
    words = shlex.split(block.test.removeprefix("error of "))
    assert run_command(words, monkeypatch) == 2
    assert capsys.readouterr().err == block.text


@pytest.mark.parametrize("block", blocks("python", "run"))
def test_python_runs(block, readers_folder, monkeypatch):
    def train(config: RunConfig, **settings: Any) -> api.Run:
        assert isinstance(config, RunConfig)
        return api.open_run("runs/quickstart")

    monkeypatch.setattr(api, "train", train)
    exec(compile(block.text, block.where, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("block", blocks("python", "served"))
def test_python_talks_to_the_server(block, readers_folder):
    from serve.stub_server import listening

    from mixlab.serve.server import open_service
    from mixlab.serve.settings import ServeSettings

    service, _ = open_service("runs/quickstart", ServeSettings())
    with listening(service) as url:
        text = block.text.replace("http://127.0.0.1:8000", url)
        exec(compile(text, block.where, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("block", blocks("yaml", "recipe"))
def test_recipe_decodes(block, readers_folder):
    config = load_config(block.test.split(" ")[1])
    assert model_budget(config.model, config.data.seq_len).n_params > 0


@pytest.mark.parametrize("block", blocks("yaml", "study"))
def test_study_decodes(block, readers_folder):
    assert len(arm_specs(load_study(block.test.split(" ")[1]))) > 1


@pytest.mark.parametrize("block", blocks("yaml", "claim"))
def test_claim_decodes(block, readers_folder):
    assert load_claim(block.test.split(" ")[1]).file.statements


@pytest.mark.parametrize("block", blocks("yaml", "merge"))
def test_part_of_a_config_fits_its_recipe(block, readers_folder):
    base = load_recipe(block.test.split(" ")[1])
    changed = merge(base, parse_yaml(block.text, block.where))
    assert decode(RunConfig, changed) != decode(RunConfig, base), "changes nothing"


# --- tables ---------------------------------------------------------------------------------------


def tables(kind: str) -> list[Any]:
    """(argument of the comment, rows of cells) of each table behind `<!-- kind: argument -->`."""
    pattern = re.compile(rf"^<!-- {kind}(?:: (\S+))? -->\n((?:\|.*\n)+)", re.M)
    return [
        pytest.param(
            match[1],
            [line.strip("|").split(" | ") for line in match[2].splitlines()[2:]],
            id=f"{page.name}-{match[1]}",
        )
        for page in PAGES
        for match in pattern.finditer(page.read_text(encoding="utf-8"))
    ]


def classes_at(path: list[str], top: type[Config] = RunConfig) -> list[type[Config]]:
    """The config classes at a dotted place; any name will do where a dict or list has its items."""
    here: list[Any] = [top]
    for part in path:
        fields = [cls.model_fields[part] for cls in here if part in cls.model_fields]
        if fields:
            here = [model for field in fields for model in _models(field.annotation)]
        elif not part.isupper() and not part.isdigit():
            return []
    return here


@pytest.mark.parametrize("place, rows", tables("settings"))
def test_settings_are_complete(place: str, rows: list[list[str]]):
    path, _, kind = place.partition("=")
    is_refine, path = path.startswith("refine."), path.removeprefix("refine.")
    found = classes_at(path.split("."), RefineRunConfig if is_refine else RunConfig)
    if kind:
        found = [cls for cls in found if cls.model_fields["kind"].default == kind]
    (cls,) = found
    fields = {name: field for name, field in cls.model_fields.items() if name != "kind"}
    assert [row[0].strip(" `") for row in rows] == list(fields)
    for name, default, _ in rows:
        actual = fields[name.strip(" `")].default
        assert default.strip(" `") == shown(actual), name


def shown(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    if default is None:
        return "absent"
    if isinstance(default, Config):
        return "see below"
    return default if isinstance(default, str) else json.dumps(default)


@pytest.mark.parametrize("place, rows", tables("recipes"))
def test_recipes_are_complete(place, rows):
    assert {row[0].strip(" `") for row in rows} == {info.name for info in list_recipes()}
    for row in rows:
        cells = {cell.strip(" `") for cell in row}
        config = load_config(row[0].strip(" `"))
        if config.kind == "refine":
            budget, corpus = refiner_budget(config.model), config.data.task.name
            batch = f"{config.train.batch_size} puzzles"
        else:
            budget = model_budget(config.model, config.data.seq_len)
            batch = f"{config.train.batch_size} x {config.data.seq_len}"
            corpus = config.data.corpus.kind
        assert f"{budget.n_params:,}" in cells, row[0]
        if len(row) < 8:
            continue
        optimizer, per_token = config.train.optimizer, budget.train_flops_per_token
        n_steps = config.train.length.n_steps(config.tokens_per_step, per_token, None)
        n_tokens = n_steps * config.tokens_per_step
        length = f"{n_steps:,}" + (f" = {count(n_tokens)}" if config.kind != "refine" else "")
        rate = f"{optimizer.kind}, {optimizer.lr:g}"
        assert {batch, length, rate, corpus, flops(n_tokens * per_token)} <= cells, row[0]


@pytest.mark.parametrize("place, rows", tables("checks"))
def test_checks_are_complete(place, rows):
    listed = [tuple(cell.strip(" `") for cell in row) for row in rows]
    actual = [(c.name, c.question, "yes" if c.is_quick else "") for c in CHECKS.values()]
    assert listed == actual


# --- words ----------------------------------------------------------------------------------------


def inline_code(page: Path) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", page_text(page)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_and_commands_in_the_text_exist(page):
    parts = "|".join(name for name in RunConfig.model_fields if name != "name")
    files = (".json", ".jsonl", ".yaml", ".safetensors", ".txt", ".py", ".md")
    for code in inline_code(page):
        key = code.partition("=")[0]
        if re.fullmatch(rf"({parts})(\.\w+)+", key) and not key.endswith(files):
            *parents, last = key.split(".")
            for top in (RunConfig, RefineRunConfig):
                names = {name for cls in classes_at(parents, top) for name in cls.model_fields}
                if last in names or last.isdigit() or classes_at(key.split("."), top):
                    break
            else:
                raise AssertionError(code)
        if code.startswith("mixlab "):
            name, *words = code.split()[1:]
            if name.startswith("-") or name == "...":
                continue
            command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
            options = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= options, code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page_text(page)):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page_text(page), re.M)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {word.replace(" ", "-") for word in words}


def test_no_place_for_a_figure_is_left_open():
    places = [p.name for p in PAGES if "<!-- PLACE" in p.read_text(encoding="utf-8")]
    assert not places, "put in what was measured, and delete the comment"


# --- the guide for contributors -------------------------------------------------------------------

DRIVER = """
import sys
import typer.main
from mixlab.cli.main import app, main
from mixlab.jobs.smoke import load_shrunk
for name, *words in {parsed!r}:
    params = typer.main.get_command(app).commands[name].make_context(name, words).params
    load_shrunk(params["recipe"], params["overrides"])
for words in {commands!r}:
    sys.argv = words
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, words
import pytest
options = ["-q", "-p", "no:cacheprovider", "--rootdir", ".", "-o", "pythonpath=tests"]
sys.exit(pytest.main([*options, *{tests!r}, "-k", "fading_mean or every_entry"]))
"""


def test_a_mixer_can_be_added(tmp_path):
    """The steps of CONTRIBUTING, taken in a copy of the package."""
    ours = [b for b in BLOCKS if b.page.name == "CONTRIBUTING.md"]
    shutil.copytree(
        ROOT / "mixlab", tmp_path / "mixlab", ignore=shutil.ignore_patterns("__pycache__")
    )
    (tmp_path / "tests" / "nn").mkdir(parents=True)
    for name in ("tiny_mixers.py", "nn/test_sequence_mixers.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests" / name)
    files = {b.test.removeprefix("file "): b.text for b in ours if b.test.startswith("file ")}
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    for block in ours:
        if block.test.startswith("entry "):
            add_entry(tmp_path / block.test.removeprefix("entry "), block.text)
    (run,) = (commands(b.text) for b in ours if b.test == "extended run")
    (parsed,) = (commands(b.text) for b in ours if b.test == "extended parse")
    (test,) = (path for path in files if path.startswith("tests/"))
    tests = [test, "tests/nn/test_sequence_mixers.py"]  # the latter is the contract of all mixers
    driver = DRIVER.format(parsed=[words[1:] for words in parsed], commands=run, tests=tests)
    done = subprocess.run(
        [sys.executable, "-c", driver],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fading_mean" in done.stdout and " passed" in done.stdout


def add_entry(file: Path, text: str) -> None:
    """Put imports before the file's own, and the rest at the top of its table of mixers."""
    lines = file.read_text(encoding="utf-8").splitlines()
    imports = [line for line in text.splitlines() if line.startswith("from ")]
    entries = [line for line in text.splitlines() if line.strip() and line not in imports]
    start = next(i for i, line in enumerate(lines) if line.startswith("SEQUENCE"))
    table = next(i for i in range(start, len(lines)) if lines[i].endswith("{"))
    lines[table + 1 : table + 1] = entries
    if imports:
        first = next(i for i, line in enumerate(lines) if line.startswith("from mixlab"))
        lines[first:first] = imports
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
