"""Instruction tuning: a child run that starts from a run's weights and learns from its answers."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixlab.core.config import Tree, diff, dump_yaml, merge, override, read_yaml, to_tree
from mixlab.core.errors import LabError
from mixlab.core.recipes import list_presets, load_preset
from mixlab.core.run_dir import RunDir
from mixlab.data.chat.templates import TEMPLATES
from mixlab.data.tokenizers.base import Tokenizer
from mixlab.jobs.answers import answer_figures, ask
from mixlab.jobs.config import RunConfig, decode_config
from mixlab.jobs.device import Hardware, settle_hardware
from mixlab.jobs.extend import at_rest, whole_or_gone
from mixlab.jobs.kinds import kind_of
from mixlab.jobs.memory import fit_memory, told_of_memory
from mixlab.jobs.ranks import locked, made_by_first
from mixlab.jobs.recorder import LOGS
from mixlab.jobs.run_tokenizer import BASE, at_home
from mixlab.jobs.screen import PlainScreen, Screen
from mixlab.jobs.session import Session, open_session, prepare_data
from mixlab.jobs.sitting import RunResult, run_sitting
from mixlab.jobs.train import find_checkpoint, settle
from mixlab.jobs.trained import TrainedModel, open_trained
from mixlab.parallel import ALONE, World
from mixlab.training import checkpoint as checkpoints
from mixlab.training.generators import collect_generators
from mixlab.training.loop import Progress
from mixlab.training.mirrors import check_mirrors

PART = "sft"
"""Folder of the packaged presets."""
DEFAULT = "default"
EPOCHS = 3.0
FREE = ("model.dropout", "model.max_seq_len")
"""What may be changed about a model that is trained."""
INHERITED = ("model", "seed")
"""What a child has of its parent's config, before its own settings."""
NEW_ROW_NOISE = 0.1
"""Spread of new embedding rows around the mean of the old ones, as a share of the old spread."""


def tune_run(
    path: Path,
    data: str,
    overrides: Sequence[str] = (),
    *,
    run_dir: Path | None = None,
    epochs: float | None = None,
    checkpoint: str | int = "best",
    screen: Screen | None = None,
    command: str | None = None,
    world: World = ALONE,
) -> RunResult:
    """Fine-tune the run at `path` on examples, in a new folder that names its parent.

    `data` is a file of JSON lines, or the name of a packaged preset such as `instructions`. The
    length is `epochs` passes over the examples, or what `train.length` says. `world` is the
    processes that train together, all of which make this call.

    Raises:
        LabError: no such run or data, settings that are not valid or do not fit, a taken folder.
    """
    screen = screen or PlainScreen()
    parent = RunDir.open(path)
    is_number = isinstance(epochs, int | float) and not isinstance(epochs, bool)
    if epochs is not None and not (is_number and 0 < epochs < math.inf):
        raise LabError(f"epochs = {epochs!r}: expected a number of passes above 0, such as 3.")
    if run_dir is not None and world.is_first:
        RunDir(run_dir).refuse_taken()
    with world.first_goes_first(), at_rest(parent) if world.is_first else nullcontext():
        base = open_trained(parent.path, checkpoint)
        config = decode_config(read_yaml(parent.config_path))
    assert isinstance(config, RunConfig), "open_trained refuses other kinds"
    tree, has_length = child_tree(config, parent, base.tokenizer, data, overrides)
    if epochs is not None and any(text.startswith("train.length") for text in overrides):
        raise LabError(
            f"--epochs {epochs:g}: expected without train.length, which says it already."
        )
    if epochs is None and not has_length:
        epochs = EPOCHS
    child_config, hardware = _settled(tree, epochs, screen, world)
    child = made_by_first(world, lambda: _make_folder(parent, run_dir))
    with locked(child, world):
        with world.first_goes_first(), whole_or_gone(child) if world.is_first else nullcontext():
            if world.is_first:
                base.tokenizer.save(child.path / BASE)
            child_config = _with_tokenizer(child_config, base.tokenizer.eos)
            prepared = prepare_data(at_home(child_config, child.path), _Hushed(screen))
            prepared.manifest["tokenizer"]["config"] = to_tree(child_config.data.tokenizer)
            if world.is_first:
                _tell(parent, base, child_config, screen)
                alone = hardware._replace(world=ALONE)
                answers = _first_checkpoint(child, child_config, prepared, alone, base, screen)
                facts = {
                    "path": str(parent.path.resolve()), "name": config.name, "step": base.step,
                    "how": "sft", "answers": answers,
                }  # fmt: skip
                child.write_json("parent.json", facts)
                child.write_text("request.yaml", dump_yaml(to_tree(child_config)))
                # Last, since it makes the folder a run: without its first checkpoint it is none.
                child.write_text("config.yaml", dump_yaml(to_tree(child_config)))
        saved = find_checkpoint(child, None)
        return run_sitting(
            child, child_config, prepared, hardware, Progress(), saved, screen, command
        )


# --- config -------------------------------------------------------------------------------------


def child_tree(
    config: RunConfig, parent: RunDir, tokenizer: Tokenizer, data: str, overrides: Sequence[str]
) -> tuple[Tree, bool]:
    """The child's config and whether it says its length; overrides have the last word."""
    preset = _source(data)
    tree: Tree = {name: to_tree(config)[name] for name in INHERITED}
    tree["name"] = f"{config.name[:90]}-sft"
    tree["about"] = f"{config.name} tuned on {data}."
    tree["data"] = {
        "seq_len": config.data.seq_len,
        "tokenizer": {
            "kind": "file", "path": str(parent.path / "tokenizer.json"), "eos": tokenizer.eos
        },
    }  # fmt: skip
    if config.data.chat is not None:  # a parent that can be talked to keeps its way of talking
        preset = merge(preset, {"data": {"chat": to_tree(config.data.chat)}})
    before = {"model": tree["model"], "data.tokenizer": tree["data"]["tokenizer"]}
    tree = merge(tree, preset)
    if overrides:
        tree["about"] = f"{config.name} tuned on {data} with {', '.join(overrides)}."
    tree = override(tree, overrides)
    if not all(isinstance(tree[part], dict) for part in ("data", "train", "model")):
        decode_config(tree)  # says which of them should be a group of settings
    _refuse_other_model(before, tree, parent)
    has_length = "length" in tree["train"]
    if not has_length:
        tree["train"] = {**tree["train"], "length": "1 steps"}
    chat = tree["data"].get("chat")
    template = TEMPLATES.get(str(chat.get("template"))) if isinstance(chat, dict) else None
    if template is not None:
        wanted = tokenizer.with_special_tokens(template.marks).vocab_size
        size = max(tree["model"]["vocab_size"], wanted)
        tree["model"] = {**tree["model"], "vocab_size": size}
    return tree, has_length


def _refuse_other_model(before: Tree, tree: Tree, parent: RunDir) -> None:
    """Weights belong to their model and their tokenizer."""
    now = {"model": tree["model"], "data.tokenizer": tree["data"].get("tokenizer")}
    for key, (_, value) in diff(before, now).items():
        if key not in FREE:
            raise LabError(
                f"{key} = {value!r}: expected the model and the tokenizer of {parent.path}, whose "
                "weights are tuned. Leave it out."
            )


def _source(data: str) -> Tree:
    """The settings that the data argument stands for, over the default ones."""
    default = load_preset(PART, DEFAULT)
    names = [name for name in list_presets(PART) if name != DEFAULT]
    path = Path(data)
    if data in names:
        return merge(default, load_preset(PART, data))
    if not path.exists() and "*" not in data:
        raise LabError(
            f"data = {data!r}: expected a file of JSON lines with messages, or one of "
            f"{', '.join(names)}, but there is no such file."
        )
    if path.suffix in (".yaml", ".yml"):
        return merge(default, read_yaml(path))
    return merge(default, {"data": {"corpus": {"kind": "chat", "path": data}}})


def _settled(
    tree: Tree, epochs: float | None, screen: Screen, world: World
) -> tuple[RunConfig, Hardware]:
    """The config with everything decided, checked against memory and examples.

    `epochs` passes over the examples; None: the length is in the tree.
    """
    request = decode_config(tree)
    assert isinstance(request, RunConfig)
    check_mirrors(request.log.mirrors)
    hardware = settle_hardware(request.train, world)
    kind_of(request).require_memory(request, hardware)
    with world.first_goes_first():
        prepared = prepare_data(request, screen)
    if epochs is not None:
        n_rows = prepared.split("train").n_windows(request.data.seq_len)
        n_steps = max(1, round(epochs * n_rows / request.train.batch_size))
        request = decode_config(merge(tree, {"train": {"length": f"{n_steps} steps"}}))
    with told_of_memory(request):
        settled = settle(fit_memory(request, hardware, screen), prepared, hardware)
    assert isinstance(settled, RunConfig)
    return settled, hardware


def _with_tokenizer(config: RunConfig, eos: str) -> RunConfig:
    """The config with the parent's tokenizer as a file of the child, which then needs no parent."""
    tokenizer = {"kind": "file", "path": BASE, "eos": eos}
    settled = decode_config(merge(to_tree(config), {"data": {"tokenizer": tokenizer}}))
    assert isinstance(settled, RunConfig)
    return settled


# --- the first checkpoint -----------------------------------------------------------------------


def _first_checkpoint(
    child: RunDir,
    config: RunConfig,
    prepared: Any,
    hardware: Hardware,
    base: TrainedModel,
    screen: Screen,
) -> dict[str, Any] | None:
    """Save the parent's weights with a new optimizer as step 0 of the child.

    Returns what the parent answers to the questions of the test split.
    """
    with torch.random.fork_rng(hardware.gpus):
        torch.manual_seed(config.seed)
        session = open_session(config, prepared, hardware)
        weights = base.model.state_dict()
        n_known = base.tokenizer.vocab_size
        if prepared.tokenizer.vocab_size > n_known:
            weights = grow_vocabulary(weights, config.model.vocab_size, n_known, config.seed)
        checkpoints.load_module(session.model, weights)
        tensors = {
            "model": session.model.state_dict(),
            "optimizer": session.optimizer.state_tensors(),
            "generators": collect_generators({}),
        }
        if session.ema is not None:
            session.ema.load_state_tensors(dict(session.model.named_parameters()))
            tensors["ema"] = session.ema.state_tensors()
        answers = _ask_parent(session, screen)
        state = {
            "progress": asdict(Progress()),
            "log_bytes": dict.fromkeys(LOGS, 0),
            "config": to_tree(config),
        }
        checkpoints.save(child.checkpoints_path, 0, tensors, state)
    return answers


def _ask_parent(session: Session, screen: Screen) -> dict[str, Any] | None:
    """What the weights answer before they are tuned, for comparison."""
    n = session.config.eval.n_answers
    answered = ask(session, "test", n, screen) if n else []
    return answer_figures(answered) if answered else None


def grow_vocabulary(
    weights: dict[str, Tensor], vocab_size: int, n_known: int, seed: int
) -> dict[str, Tensor]:
    """Weights with embedding rows for `vocab_size` tokens, of which the first `n_known` are known.

    Every row from `n_known` on becomes the mean of the known ones with a little noise: such a row
    starts out as likely as an average token, where a random one could start out as the likeliest
    [Hewitt 2021, "Initializing new word embeddings for pretrained language models"]. That holds for
    rows that were there but stood for no token, too.
    """
    generator = torch.Generator().manual_seed(seed)
    grown = dict(weights)
    made: dict[int, Tensor] = {}  # tied matrices stay one
    for name in ("embed_tokens.weight", "lm_head.weight"):
        old = weights.get(name)
        if old is None:
            continue
        if old.data_ptr() not in made:
            known = old[:n_known].to("cpu", torch.float32)
            shape = (vocab_size - n_known, old.shape[1])
            noise = torch.randn(shape, generator=generator) * known.std(dim=0) * NEW_ROW_NOISE
            rows = torch.cat([known, known.mean(dim=0) + noise])
            made[old.data_ptr()] = rows.to(old.dtype).to(old.device)
        grown[name] = made[old.data_ptr()]
    return grown


# --- words --------------------------------------------------------------------------------------


class _Hushed:
    """The screen without its notes, for what was said before."""

    def __init__(self, screen: Screen) -> None:
        self.task = screen.task

    def note(self, message: str) -> None: ...


def _make_folder(parent: RunDir, run_dir: Path | None) -> RunDir:
    if run_dir is not None:
        return RunDir.create(run_dir)
    path = parent.path if parent.path.name.strip(".") else parent.path.resolve()
    return RunDir.create_next(path.parent, f"{path.name}-sft")


def _tell(parent: RunDir, base: TrainedModel, config: RunConfig, screen: Screen) -> None:
    n_new = config.model.vocab_size - base.model.cfg.vocab_size
    text = (
        f"Tuning the weights of step {base.step} of {parent.path}: "
        f"{int(config.train.length.amount)} steps."
    )
    if n_new:
        text += (
            f" The tokenizer gets {n_new} special tokens of {config.data.chat.template}, and the "
            "embedding as many rows."
        )
    screen.note(text)
