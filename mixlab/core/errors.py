"""Errors a user can cause and can fix.

The command line prints these as one paragraph and exits with status 2. Anything else that escapes
is a bug in the lab and keeps its traceback.
"""

from collections.abc import Callable


class LabError(Exception):
    """Base class of everything a user can cause: one paragraph that names the way out."""

    when_told: Callable[[], None] | None = None
    """To be called when the user has read it, by whoever shows it."""


class ConfigError(LabError):
    """One config value is missing, unknown, out of range or inconsistent with another one."""

    def __init__(self, path: str, got: object, expected: str, fix: str = "") -> None:
        self.path = path  # dotted, as typed by the user: "model.blocks.full.sequence_mixer.n_heads"
        super().__init__(f"{path} = {got!r}: expected {expected}." + (f" {fix}" if fix else ""))


class MemoryConfigError(ConfigError):
    """What the config asks for does not fit into the memory that is there."""


class BackendError(LabError):
    """The kernel that was asked for by name cannot run here; it is never swapped silently."""


class DataError(LabError):
    """The corpus, the tokenizer or the shards cannot serve this run."""


class RunError(LabError):
    """A run folder cannot be created, opened, resumed or extended."""


class CheckpointError(LabError):
    """A checkpoint is missing, truncated, altered or could not be written."""


class MissingPackageError(LabError):
    """An optional package is needed for what was asked."""

    def __init__(self, package: str, needed_for: str, extra: str) -> None:
        super().__init__(
            f"{needed_for} needs the package '{package}', which is not installed. "
            f'Install it with: pip install "mixlab[{extra}]"'
        )


class Rule(ValueError):  # noqa: N818 (it is a rule that was broken)
    """A broken rule inside a config class, which knows its own fields but not where it sits.

    Raise it in a pydantic validator; `core.config.decode` puts the node's path in front and turns
    it into a `ConfigError`.
    """

    def __init__(self, field: str, got: object, expected: str, fix: str = "") -> None:
        self.field, self.got, self.expected, self.fix = field, got, expected, fix
        super().__init__(f"{field} = {got!r}: expected {expected}. {fix}")
