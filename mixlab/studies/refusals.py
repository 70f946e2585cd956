"""What no study may be: equal arms, arms of another kind or of other text, runs that stop early."""

from typing import TYPE_CHECKING

from mixlab.core.config import Tree, digest, to_tree
from mixlab.core.errors import LabError
from mixlab.jobs.config import AnyRunConfig
from mixlab.studies.comparison_ground import BITS, ground, require_one_text
from mixlab.studies.tuning import without_rate

if TYPE_CHECKING:
    from mixlab.studies.design import Arm, Design


def refuse_early_stopping(arm: "Arm") -> None:
    if arm.config.train.early_stopping is not None:
        raise LabError(
            f"arm {arm.name!r}: train.early_stopping: expected to be absent in a study, which "
            "compares runs at the end of their schedules. Set train.early_stopping to null."
        )


def refuse_other_kind(arm: "Arm", baseline: "Arm") -> None:
    if arm.config.kind != baseline.config.kind:
        raise LabError(
            f"arm {arm.name!r}: kind = {arm.config.kind!r}: expected {baseline.config.kind!r} as "
            f"in the baseline {baseline.name!r}: their figures measure different things."
        )


def refuse_equal_arms(found: "Design") -> None:
    seen: dict[str, str] = {}
    for name, arm in found.arms.items():
        tree = figures_of(arm.config)
        reason = "they resolve to the same config"
        if found.study.tune is not None:
            tree = without_rate(tree)
            reason += " but for the learning rate, which tune finds for each arm"
        key = digest(tree)
        if key in seen:
            raise LabError(
                f"arms {seen[key]!r} and {name!r} are the same: {reason}, so one of them would "
                "count twice. Leave one out, or look at what its changes do."
            )
        seen[key] = name


def figures_of(config: AnyRunConfig) -> Tree:
    """The part of a config that decides figures."""
    left_out = ("name", "about", "seed", "checks", "log", "checkpoint", "sample")
    return {key: value for key, value in to_tree(config).items() if key not in left_out}


def require_one_ground(found: "Design") -> None:
    """Arms that are ranked by one figure must be measured by it on the same text.

    Raises:
        LabError: two arms read other text, or cut it into other tokens and count in tokens.
    """
    if found.study.published:
        return
    grounds = {
        name: ground(to_tree(arm.config), found.manifests[arm.data])
        for name, arm in found.arms.items()
    }
    base = grounds[found.baseline]
    for name, other in grounds.items():
        require_one_text(f"arm {found.baseline}", base, f"arm {name}", other)
        if other.tokenizer != base.tokenizer and not found.metric.name.endswith(BITS.name):
            raise LabError(
                f"metric = {found.metric.name!r}: arms {found.baseline!r} and {name!r} have other "
                "tokenizers, and figures per token do not compare between them. Set metric to "
                f"{found.metric.name.partition('.')[0]}.{BITS.name}."
            )
        if other.n_eval_tokens != base.n_eval_tokens and other.tokenizer == base.tokenizer:
            raise LabError(
                f"arm {name!r}: eval.n_tokens = {other.n_eval_tokens}: expected "
                f"{base.n_eval_tokens} as in the baseline {found.baseline!r}: arms are measured on "
                "the same text."
            )
