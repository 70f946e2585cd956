"""Where a model can go, told from its config alone: before anything is trained."""

from typing import NamedTuple

from mixlab.export import TARGETS
from mixlab.export.target import ENGINES, Answer, Target
from mixlab.nn.language_model import LanguageModelConfig


class Verdict(NamedTuple):
    """The stock architecture of a model, or the reasons why it has none."""

    target: Target | None
    nearest: Target
    """The target itself, or the one with the fewest reasons against it."""
    reasons: tuple[str, ...]
    """Why the nearest does not fit; empty where there is a target."""
    answers: tuple[Answer, ...]
    """One for each engine, in the order of `ENGINES`."""


def verdict(
    cfg: LanguageModelConfig, prefer: str | None = None, *, prefix_lm: bool = False
) -> Verdict:
    """Judge a config.

    `prefer` names the architecture to take where it fits, such as the one that an imported run came
    from. `prefix_lm` says that tokens of a prompt see each other both ways.
    """
    against = {name: target.problems(cfg) for name, target in TARGETS.items()}
    if prefix_lm:
        for problems in against.values():
            problems.append(BOTH_WAYS)
    fitting = [TARGETS[name] for name, problems in against.items() if not problems]
    if fitting:
        target = next((t for t in fitting if t.model_type == prefer), fitting[0])
        return Verdict(target, target, (), target.engines(cfg))
    nearest = min(against, key=lambda name: (_kinds_missed(against[name]), len(against[name])))
    if cfg.recursion is not None:
        nearest = next(name for name, target in TARGETS.items() if target.loops)
    reasons = tuple(against[nearest])
    why = f"as {TARGETS[nearest].label}: {reasons[0]}"
    return Verdict(None, TARGETS[nearest], reasons, tuple(Answer(e, "no", why) for e in ENGINES))


BOTH_WAYS = "data.chat.prefix_lm = true: loaders read a prompt forwards only"


def _kinds_missed(problems: list[str]) -> int:
    """How often a target lacks a kind of layer altogether, which weighs more than a setting."""
    return sum(": every layer of" in text or " has Gated DeltaNet and" in text for text in problems)


def lines(found: Verdict) -> list[tuple[str, str]]:
    """The verdict for people: an engine, and what to expect of it."""
    if found.target is None:
        told = [("stock formats", f"none. Nearest: {found.nearest.label}, but")]
        return [*told, *(("", f"- {reason}") for reason in found.reasons)]
    rows = []
    for engine, answer, why in found.answers:
        text = f"{answer}, as {found.target.label}" if engine == "transformers" else answer
        rows.append((engine, f"{text}: {why}" if why else text))
    return rows
