"""Prove that a recipe or a run is what it claims to be; the quick checks before every training."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mixlab.checks import (
    CHECKS,
    CheckContext,
    CheckResult,
    TrainedModel,
    run_checks,
)
from mixlab.checks.subject import quiet
from mixlab.core.errors import LabError
from mixlab.core.run_dir import RunDir, is_run
from mixlab.core.units import count, duration
from mixlab.data.context import context_figures
from mixlab.data.loader import Loader
from mixlab.data.prepare import PreparedData
from mixlab.data.split import SPLITS
from mixlab.evals.language_modelling import evaluate
from mixlab.jobs.config import RefineRunConfig, RunConfig, load_config
from mixlab.jobs.run_tokenizer import at_home, changed_facts
from mixlab.jobs.screen import PlainScreen, Screen
from mixlab.jobs.session import Session, prepare_data
from mixlab.jobs.smoke import SEQ_LEN, shrink_model
from mixlab.jobs.trained import open_trained
from mixlab.nn.budget import model_budget
from mixlab.nn.language_model import LanguageModel, LanguageModelConfig, build_model
from mixlab.training import checkpoint as checkpoints

MAX_PARAMS = 5_000_000
"""Models up to this size are checked as they are, larger ones as small copies: the answers do not
depend on width, and float64 on a CPU is slow."""
MEASURED_TOKENS = 20_000
"""Validation tokens that are scored where a run has not reported a loss."""
PROBE_VOCAB = 128
"""Tokens of a small copy."""
QUICK_SEQ_LEN = 256
"""Longest sequence that is tried before a training run."""


class CheckFailedError(LabError):
    """A check before training failed; nothing was trained."""


@dataclass(frozen=True)
class CheckReport:
    """What `mixlab check` prints and checks.json holds."""

    name: str
    size: str  # of the model that was looked at
    results: list[CheckResult]
    seconds: float
    notes: list[str]

    @property
    def failed(self) -> list[CheckResult]:
        return [result for result in self.results if result.verdict == "fail"]

    def tree(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "passed": not self.failed,
            "size": self.size,
            "seconds": round(self.seconds, 3),
            "results": [result.row() for result in self.results],
        }


def check(
    recipe_or_run: str,
    overrides: Sequence[str] = (),
    *,
    with_data: bool = False,
    screen: Screen | None = None,
) -> CheckReport:
    """All checks of a packaged recipe, a YAML file or a run folder.

    A run is checked with its weights and its text; a recipe with its first weights, and with its
    text when `with_data` asks for it.

    Raises:
        LabError: no such recipe or run, or it is not valid.
    """
    start = time.perf_counter()
    screen = screen or PlainScreen()
    notes: list[str] = []
    if is_run(Path(recipe_or_run)):
        if overrides:
            raise LabError(
                f"{overrides[0]}: expected no changes for the run {recipe_or_run}, whose weights "
                "belong to its own config. Give a recipe to try changes on."
            )
        run = RunDir.open(recipe_or_run)
        config = load_config(str(run.config_path))
        if isinstance(config, RefineRunConfig):
            return _refine_checks().check_refine_run(run.path, screen)
        context, size = _of_run(run, screen, notes)
        name = recipe_or_run
    else:
        config = load_config(recipe_or_run, overrides)
        if isinstance(config, RefineRunConfig):
            return _refine_checks().check_refine_recipe(config, screen, with_data=with_data)
        data = prepare_data(config, screen) if with_data else None
        context, size = _of_config(config, data)
        name = config.name
    results = []
    with screen.task("Checking", len(CHECKS)) as advance:
        for entry in CHECKS.values():
            results += run_checks([entry], context)
            advance(1)
    return CheckReport(name, size, results, time.perf_counter() - start, notes)


def _refine_checks() -> ModuleType:
    from mixlab.jobs.refine import checks  # it builds on this module

    return checks


def check_before_training(run: RunDir, session: Session, screen: Screen) -> None:
    """The quick checks on a small copy, recorded in checks.json; once per run folder.

    Leaves the global random state and the session's model as they are.

    Raises:
        CheckFailedError: names the check, what it measured and how to look closer.
    """
    config = session.config
    before = run.read_json("checks.json")
    if config.checks == "off" or (before is not None and before["passed"]):
        return
    start = time.perf_counter()
    model, size = _subject(config, max_params=0)
    noisy, _ = _subject(config, max_params=0, is_noisy=True)
    context = CheckContext(
        build=lambda: build_model(model, config.seed),
        build_noisy=lambda: build_model(noisy, config.seed),
        seq_len=min(config.data.seq_len, QUICK_SEQ_LEN),
        optimizer=config.train.optimizer,
        loader=session.loader,
        prefix_lm=_is_prefix_lm(config),
        thorough=False,
    )
    results = run_checks([entry for entry in CHECKS.values() if entry.is_quick], context)
    report = CheckReport(run.name, size, results, time.perf_counter() - start, [])
    run.write_json("checks.json", report.tree())
    if report.failed:
        raise CheckFailedError(_explain(run, report.failed))
    screen.note(f"{len(results)} quick checks passed in {duration(report.seconds)} ({size}).")


def _explain(run: RunDir, failed: list[CheckResult]) -> str:
    first, others = failed[0], [result.name for result in failed[1:]]
    also = f" Also failed: {', '.join(others)}." if others else ""
    return (
        f"check {first.name} failed, so nothing was trained: {first.finding.measured}. "
        f"{first.finding.meaning}{also} Look closer with `mixlab check {run.path}`; to train all "
        "the same, set checks=off."
    )


# --- what is looked at --------------------------------------------------------------------------


def _subject(
    config: RunConfig, max_params: int = MAX_PARAMS, *, is_noisy: bool = False
) -> tuple[LanguageModelConfig, str]:
    """The model config that structure is checked on, and its size in words."""
    model = config.model.portable() if is_noisy else quiet(config.model)
    n_params = model_budget(model, config.data.seq_len).n_params
    if n_params <= max_params:
        return model, f"checked at full size, {count(n_params)} parameters"
    len_frac = min(1.0, SEQ_LEN / config.data.seq_len)
    small = shrink_model(model, len_frac, min(model.vocab_size, PROBE_VOCAB))
    n_small = model_budget(small, config.data.seq_len).n_params
    return small, (
        f"checked on a copy with {small.n_layers} of {model.n_layers} layers, {small.d_model} of "
        f"{model.d_model} wide, the same kinds in the same order, {count(n_small)} parameters"
    )


def _of_config(config: RunConfig, data: PreparedData | None) -> tuple[CheckContext, str]:
    model, size = _subject(config)
    noisy, _ = _subject(config, is_noisy=True)
    context = CheckContext(
        build=lambda: build_model(model, config.seed),
        build_noisy=lambda: build_model(noisy, config.seed),
        seq_len=config.data.seq_len,
        optimizer=config.train.optimizer,
        loader=_loader(config, data, "train"),
        splits=_splits(data),
        prefix_lm=_is_prefix_lm(config),
    )
    return context, size


def _is_prefix_lm(config: RunConfig) -> bool:
    return config.data.chat is not None and config.data.chat.prefix_lm


def _of_run(run: RunDir, screen: Screen, notes: list[str]) -> tuple[CheckContext, str]:
    config = load_config(str(run.config_path))
    data = _same_data(run, config, screen, notes)
    context, size = _of_config(config, data)
    if data is None or not checkpoints.steps(run.checkpoints_path):
        if data is not None:
            notes.append("The run has no checkpoint: its first weights were checked.")
        return context, size
    loaded = open_trained(run.path, "last").model
    device = loaded.embed_tokens.weight.device
    weights = {name: tensor.cpu() for name, tensor in loaded.state_dict().items()}
    whole = quiet(config.model)
    trained = _with_weights(whole, config.seed, weights)().to(device).eval()
    facts = _trained_facts(run, config, data, trained)
    build = context.build
    if _subject(config)[0] == whole:
        build = _with_weights(whole, config.seed, weights)
    else:
        notes.append("Structure was checked on first weights; input-use and unigram on the run's.")
    return (
        CheckContext(
            build=build,
            build_noisy=context.build_noisy,
            seq_len=context.seq_len,
            optimizer=context.optimizer,
            loader=context.loader,
            splits=context.splits,
            prefix_lm=context.prefix_lm,
            trained=facts,
        ),
        size,
    )


def _with_weights(
    model: LanguageModelConfig, seed: int, weights: dict[str, Any]
) -> Callable[[], LanguageModel]:
    def build() -> LanguageModel:
        built = build_model(model, seed)
        built.load_state_dict(copy.deepcopy(weights), assign=True)  # in the dtype they were kept
        return built

    return build


def _same_data(
    run: RunDir, config: RunConfig, screen: Screen, notes: list[str]
) -> PreparedData | None:
    """The run's text, if it can still be had as it was, or the one that it would be trained on."""
    data = prepare_data(at_home(config, run.path), screen)
    recorded = run.read_json("data.json")
    if recorded is None or not changed_facts(recorded, data.manifest):
        return data
    if recorded.get("imported") and "content_hash" not in recorded:
        notes.append("The model was imported and has not been trained here: its weights were "
                     "checked, with the text that it would be trained on.")  # fmt: skip
        return data
    notes.append("The text has changed since the run: what needs the run's text was left out.")
    return None


def _loader(config: RunConfig, data: PreparedData | None, split: str) -> Loader | None:
    if data is None:
        return None
    return Loader(data.split(split), config.data.seq_len, config.seed)


def _splits(data: PreparedData | None) -> dict[str, Any] | None:
    return None if data is None else {name: data.split(name) for name in SPLITS}


def _trained_facts(
    run: RunDir, config: RunConfig, data: PreparedData, model: LanguageModel
) -> TrainedModel:
    """What the run reported of itself, with the entropies measured again; before it did, and for
    weights that were imported, the loss is measured here."""
    loader = _loader(config, data, "validation")
    assert loader is not None
    n_windows = min(-(-config.eval.n_tokens // config.data.seq_len), loader.n_windows)
    rows = [row for row in run.read_jsonl("evals.jsonl") if row["split"] == "validation"]
    rows = [row for row in rows if row["step"] > 0]
    if rows:
        last = rows[-1]
    else:
        n_windows = min(n_windows, max(1, MEASURED_TOKENS // config.data.seq_len))
        batches = loader.window_batches(n_windows, min(config.eval.batch_size, n_windows))
        token_bytes = data.split("validation").token_bytes
        last = {"step": 0, **evaluate(model, batches, token_bytes)._asdict()}
    earlier = min(rows[:-1], key=lambda row: abs(row["step"] - last["step"] / 2), default=None)
    figures = context_figures(data.split("validation"), config.data.seq_len, n_windows)
    return TrainedModel(
        model=model,
        loader=loader,
        loss_nats=last["loss_nats"],
        earlier_loss_nats=None if earlier is None else earlier["loss_nats"],
        unigram_entropy_nats=figures["unigram_entropy_nats"],
        ln_vocab_nats=figures["ln_vocab_nats"],
    )
