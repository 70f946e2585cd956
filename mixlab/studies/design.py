"""What a study file means: every arm as a settled config, checked before any compute is spent."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mixlab.core.config import Tree, to_tree
from mixlab.core.errors import LabError
from mixlab.data.progress import Silent
from mixlab.jobs.config import AnyRunConfig, RunConfig, decode_config
from mixlab.jobs.kinds import kind_of
from mixlab.jobs.screen import Screen
from mixlab.jobs.session import optimizer_bytes_per_param
from mixlab.nn.budget import state_bytes, training_memory_bytes
from mixlab.studies.address import code_version, data_key
from mixlab.studies.arms import arm_specs
from mixlab.studies.changes import apply_changes, arm_tree, base_tree
from mixlab.studies.job_store import Job, Purpose
from mixlab.studies.lengths import Costs, match_lengths, needs_timing, with_steps
from mixlab.studies.metrics import Metric, find_metric
from mixlab.studies.refusals import (
    refuse_early_stopping,
    refuse_equal_arms,
    refuse_other_kind,
    require_one_ground,
)
from mixlab.studies.shrink import Scale
from mixlab.studies.sizes import budget_of, size_of, solve_size
from mixlab.studies.study_file import TOLERANCE, StudyFile
from mixlab.training.length import Length

FORMAT = 1
BOOTSTRAP_SEEDS = 8
"""From so many seeds on, documents are resampled, so every run measures them one by one."""
STATE_TOKENS = 1024
"""Length of the sequence whose decoding state is stated."""


@dataclass
class Arm:
    """One arm with its config settled but for the seed."""

    name: str
    changes: Tree  # as they stand in the study file
    config: AnyRunConfig
    solved: dict[str, Any] | None = None
    data: str = ""  # key of its prepared data
    seconds_per_step: float | None = None
    flops_per_token_counted: float | None = None


@dataclass
class Design:
    """A study that is ready to run, or waits for its updates to be timed."""

    study: StudyFile
    is_smoke: bool
    arms: dict[str, Arm]
    baseline: str
    metric: Metric
    length: Length
    manifests: dict[str, Tree] = field(default_factory=dict)
    has_lengths: bool = False


def design(study: StudyFile, *, is_smoke: bool, screen: Screen) -> Design:
    """Settle everything that needs no timing, and prepare the data.

    Raises:
        LabError: the first thing wrong with the study, before any compute.
    """
    arms = _configs(study, is_smoke)
    baseline = study.baseline or next(iter(arms))
    metric = find_metric(study.metric, {arm.config.kind for arm in arms.values()})
    length = study.budget.per_run or arms[baseline].config.train.length
    if is_smoke:
        length = arms[baseline].config.train.length
    for arm in arms.values():
        refuse_early_stopping(arm)
        refuse_other_kind(arm, arms[baseline])
    _match_sizes(study, arms, baseline)
    found = Design(study, is_smoke, arms, baseline, metric, length)
    refuse_equal_arms(found)
    if not needs_timing(study.matched_length, length):
        settle_lengths(found)
    for arm in arms.values():
        _prepare_data(found, arm, screen)
    require_one_ground(found)
    return found


def settle_lengths(found: Design) -> None:
    """Give every arm its number of updates.

    Raises:
        LabError: the lengths cannot be matched within the tolerance.
    """
    arms, quantity = found.arms, found.study.matched_length
    costs = {name: Costs.of(arm.config, arm.seconds_per_step) for name, arm in arms.items()}
    steps = match_lengths(quantity, found.length, costs, found.baseline)
    for name, arm in arms.items():
        arm.config = with_steps(arm.config, steps[name])
    found.has_lengths = True
    refuse_equal_arms(found)


def _configs(study: StudyFile, is_smoke: bool) -> dict[str, Arm]:
    specs = arm_specs(study)
    try:
        base_tree(study.base)
    except LabError as error:
        raise LabError(f"base = {study.base!r}: {error}") from None
    baseline = study.baseline or specs[0].name
    trees: dict[str, Tree] = {}
    arms: dict[str, Arm] = {}
    for spec in sorted(specs, key=lambda spec: spec.name != baseline):  # the scale comes first
        try:
            tree = {**arm_tree(study, spec), "name": _run_name(study, spec.name)}
            tree["seed"] = study.seeds[0]
            config = decode_config(tree)
            if is_smoke:
                tree = to_tree(config)
                if not trees:
                    scale = Scale(config, tree)
                tree = apply_changes(scale.shrink(tree), study.smoke)
                config = decode_config(tree)
        except LabError as error:
            raise LabError(*_named(spec.name, error)) from None
        trees[spec.name] = tree
        recipe = {} if spec.recipe is None else {"recipe": spec.recipe}
        arms[spec.name] = Arm(spec.name, {**recipe, **spec.changes}, config)
    return {spec.name: arms[spec.name] for spec in specs}


def _named(name: str, error: LabError) -> tuple[Any, ...]:
    """The arguments of an error of the same class that names the arm."""
    return (f"arm {name!r}: {error}",)


def _run_name(study: StudyFile, arm: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"{study.name}-{arm}")[:100].rstrip("-.")


def _match_sizes(study: StudyFile, arms: dict[str, Arm], baseline: str) -> None:
    quantity = study.matched_size
    if quantity is None:
        return
    target = size_of(arms[baseline].config, quantity)
    for arm in arms.values():
        try:
            solved = solve_size(arm.config, quantity, target, study.solve)
        except LabError as error:
            raise LabError(f"arm {arm.name!r}: {error}") from None
        arm.config = solved.config
        arm.solved = {
            "knob": solved.knob,
            "target": target,
            "reached": solved.reached,
            "changes": solved.changes,
        }
    sizes = {name: size_of(arm.config, quantity) for name, arm in arms.items()}
    least, most = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    if sizes[most] / sizes[least] - 1 > TOLERANCE:
        raise LabError(
            f"match = {quantity}: cannot be reached within {TOLERANCE:.0%} by changing "
            f"{study.solve}: arm {least!r} has {sizes[least]:,} and arm {most!r} {sizes[most]:,}. "
            "Choose another `solve` (d_ff, d_model, head_dim)."
        )


def _prepare_data(found: Design, arm: Arm, screen: Screen) -> None:
    """Build the arm's data once for all workers, and take its fingerprint.

    Raises:
        LabError: the text is missing, too small, or does not fit the model.
    """
    mine = to_tree(arm.config.data)
    others = (other for other in found.arms.values() if other.data)
    is_known = any(to_tree(other.config.data) == mine for other in others)
    try:
        data = kind_of(arm.config).prepare_data(arm.config, Silent() if is_known else screen)
    except LabError as error:
        raise LabError(f"arm {arm.name!r}: {error}") from None
    arm.data = data_key(data.manifest)
    found.manifests[arm.data] = data.manifest


# --- on disk --------------------------------------------------------------------------------------


def to_json(found: Design) -> Tree:
    """The content of study.json: all that workers, drivers and reports need to know."""
    study = found.study
    match = {"by": _matched(study), "tolerance": TOLERANCE, "solve": study.solve}
    tune = None
    if study.tune is not None:
        tune = {"seeds": study.tuning_seeds, "max_runs": study.tune.max_runs}
    total = study.budget.total
    return {
        "format": FORMAT,
        "name": study.name,
        "about": study.about,
        "is_smoke": found.is_smoke,
        "is_as_published": study.published,
        "metric": found.metric._asdict(),
        "effect": study.effect,
        "baseline": found.baseline,
        "seeds": list(study.seeds),
        "match": match,
        "budget": {"per_run": str(found.length), "total": None if total is None else str(total)},
        "tune": tune,
        "screen": None if study.screen is None else {"rungs": list(study.screen)},
        "keep": study.keep,
        "documents": len(study.seeds) >= BOOTSTRAP_SEEDS,
        "code": code_version(),
        "data": found.manifests,
        "arms": [_arm_json(found, arm) for arm in found.arms.values()],
    }


def _matched(study: StudyFile) -> list[str]:
    """The matched quantities; a study that names a size only holds tokens equal, too."""
    size = study.matched_size
    return [study.matched_length, *([size] if size is not None else [])]


def _arm_json(found: Design, arm: Arm) -> Tree:
    config = arm.config
    budget, cost = budget_of(config), Costs.of(config, arm.seconds_per_step)
    is_language = isinstance(config, RunConfig)
    state = memory = None
    if is_language:
        train = config.train
        n_state = min(STATE_TOKENS, config.model.max_seq_len)
        state = state_bytes(config.model, n_state, 2)
        memory = training_memory_bytes(
            config.model,
            micro_batch_tokens=(train.micro_batch_size or train.batch_size) * config.data.seq_len,
            optimizer_bytes_per_param=optimizer_bytes_per_param(train),
        )
    planned = None
    if found.has_lengths:
        n = int(config.train.length.amount)
        planned = {"steps": n, "tokens": n * cost.tokens, "flops": n * cost.flops}
        planned["seconds"] = None if cost.seconds is None else n * cost.seconds
    return {
        "name": arm.name,
        "about": " ".join(config.about.split()) if "about" in arm.changes else "",
        "changes": arm.changes,
        "config": to_tree(config),
        "data": arm.data,
        "lr": config.train.optimizer.lr,
        "optimizer": config.train.optimizer.kind,
        "n_params": budget.n_params,
        "n_active_params": budget.n_active_params,
        "n_embedding_params": budget.n_embedding_params,
        "flops_per_token": budget.train_flops_per_token,
        "flops_per_token_counted": arm.flops_per_token_counted,
        "state_bytes": state,
        "state_tokens": None if state is None else n_state,
        "memory_bytes_estimate": memory,
        "solved": arm.solved,
        "planned": planned,
    }


def profile_jobs(found: Design) -> dict[str, Job]:
    """What has to be timed and counted before the study can begin, by arm."""
    quantity = found.study.matched_length
    kind: Purpose = "profile" if needs_timing(quantity, found.length) else "count"
    if kind == "count" and quantity != "flops":
        return {}
    code, jobs = code_version()["digest"], {}
    for arm in found.arms.values():
        # A length plays no part in the time of an update, so that all lengths share one timing.
        config = to_tree(with_steps(arm.config, 100))
        jobs[arm.name] = Job(kind, config, arm.data, code)
    return jobs


def take_profiles(found: Design, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Take over what was timed, and settle the lengths that waited for it."""
    for name, result in results.items():
        arm = found.arms[name]
        arm.seconds_per_step = result["seconds_per_step"]
        arm.flops_per_token_counted = result["flops_per_token_counted"]
    if not found.has_lengths:
        settle_lengths(found)
