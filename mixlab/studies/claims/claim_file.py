"""The claim file: a sentence, the study that tests it, and what must hold between its arms."""

from typing import Any, NamedTuple

from pydantic import Field, field_validator, model_validator

from mixlab.core.config import Config, decode
from mixlab.core.errors import LabError, Rule
from mixlab.core.nearest import did_you_mean
from mixlab.core.packaged import Packaged
from mixlab.studies.arms import arm_specs
from mixlab.studies.study_file import StudyFile, load_study

_CLAIMS = Packaged("claim", "studies/claims/packaged")
QUANTITIES = ("seconds", "flops", "tokens", "memory_bytes", "state_bytes", "decode_ms")
"""What a claim can be about besides the metric of its study; less is better."""


class Statement(Config):
    """One comparison: an arm with others, or whether some arms differ at all."""

    arm: str | None = None
    """The arm that the statement is about; absent with `differ`."""
    better_than: list[str] = Field(default_factory=list)
    """Arms that it is better than, each of them, by at least `by`."""
    not_worse_than: list[str] = Field(default_factory=list)
    """Arms that it is worse than by less than `by`."""
    differ: list[str] = Field(default_factory=list)
    """Arms of which at least two differ by more than `by`, in whichever direction."""
    by: float = Field(default=0.0, ge=0)
    """The smallest difference that counts, in units of the metric."""

    @field_validator("better_than", "not_worse_than", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _says_one_thing(self) -> "Statement":
        said = [n for n in ("better_than", "not_worse_than", "differ") if getattr(self, n)]
        if len(said) != 1:
            raise Rule("", said, "exactly one of better_than, not_worse_than and differ")
        if (self.arm is None) != bool(self.differ):
            raise Rule("arm", self.arm, "an arm with better_than or not_worse_than, and only then")
        if self.differ and len(self.differ) < 2:
            raise Rule("differ", self.differ, "at least two arms")
        if self.not_worse_than and not self.by:
            raise Rule(
                "by", self.by, "a margin above 0 with not_worse_than",
                "No number of seeds shows that a difference is nothing.",
            )  # fmt: skip
        return self

    @property
    def arms(self) -> list[str]:
        """Every arm that it names, each once."""
        named = [*([self.arm] if self.arm else []), *self.others]
        return list(dict.fromkeys(named))

    @property
    def others(self) -> list[str]:
        return [*self.better_than, *self.not_worse_than, *self.differ]


class ClaimFile(Config):
    """Everything that a claim file says."""

    name: str = Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the answer's file; absent: the claim file's name."""
    claim: str = Field(min_length=1)
    """The sentence."""
    about: str = ""
    """Who said it on what evidence, and what the study does about it."""
    study: str = Field(min_length=1)
    """A packaged study, or the YAML file of one."""
    metric: str | None = None
    """What is compared: absent, the metric of the study, or a quantity such as `seconds`."""
    equal: list[str] = Field(default_factory=list)
    """Quantities that the named arms must have alike, within the study's tolerance."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """The chance that is taken of calling noise a finding."""
    all_of: list[Statement] = Field(default_factory=list)
    """All of these must hold."""
    any_of: list[Statement] = Field(default_factory=list)
    """At least one of these must hold; the chance `alpha` is divided among them."""

    @model_validator(mode="after")
    def _says_something(self) -> "ClaimFile":
        if not self.all_of and not self.any_of:
            raise Rule("all_of", [], "at least one statement in all_of or any_of")
        return self

    @property
    def statements(self) -> list[Statement]:
        return [*self.all_of, *self.any_of]


class Claim(NamedTuple):
    """A claim with its study, both checked against each other."""

    file: ClaimFile
    study: StudyFile
    study_source: str
    """What to give to `mixlab study run`."""


def packaged_claims() -> list[str]:
    """The names of the claims that come with mixlab."""
    return _CLAIMS.names()


def load_claim(name_or_file: str) -> Claim:
    """A packaged claim or a YAML file, with its study.

    Raises:
        LabError: no such claim or study, an arm that the study lacks, a metric that nobody
            measures, or a quantity that the study does not hold equal.
    """
    tree, file = _CLAIMS.find(name_or_file)
    claim = decode(ClaimFile, tree)
    source = claim.study
    if file is not None and (file.parent / source).is_file():
        source = str(file.parent / source)
    study = load_study(source)
    _check_arms(claim, [spec.name for spec in arm_specs(study)])
    metric = claim.metric
    if metric is not None and metric not in (*QUANTITIES, study.metric):
        raise LabError(
            f"metric = {metric!r}: expected the metric of the study, {study.metric}, or one of "
            f"{', '.join(QUANTITIES)}."
        )
    for quantity in claim.equal:
        if quantity not in study.match:
            raise LabError(
                f"equal = {quantity!r}: expected a quantity that the study {study.name} holds "
                f"equal: {', '.join(study.match)}. Add it to the `match` of the study."
            )
    return Claim(claim, study, source)


def _check_arms(claim: ClaimFile, arms: list[str]) -> None:
    for statement in claim.statements:
        for name in statement.arms:
            if name not in arms:
                raise LabError(
                    f"arm = {name!r}: expected an arm of the study {claim.study}: "
                    f"{', '.join(arms[:20])}.{did_you_mean(name, arms)}"
                )
        if len(set(statement.others)) < len(statement.others) or statement.arm in statement.others:
            raise LabError(f"{statement.arms}: expected every arm of a statement once.")
