"""Sequential halving: many arms with one seed, fewer with more, the last with many.

Which runs are wanted next is a pure function of what is finished, so a study that was killed goes
on where it stood. Screening by few seeds drops good arms now and then; a report must say that it
was done and show what was dropped when.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mixlab.core.errors import LabError


@dataclass(frozen=True)
class Rung:
    """One round: its arms with this many seeds, and who goes on."""

    n_seeds: int
    arms: tuple[str, ...]
    means: dict[str, float]  # of the arms that are finished here, over the rung's seeds
    kept: tuple[str, ...]  # who goes on; empty while the rung is unfinished, and in the last
    dropped: tuple[str, ...]
    is_finished: bool


@dataclass(frozen=True)
class Halving:
    """The plan: seeds per rung, and how many arms go on."""

    rungs: tuple[int, ...] = (1, 3, 8)
    """Seeds that an arm of each round has in all."""
    keep_frac: float = 0.5
    """Share of a round's arms that goes on, rounded up."""
    min_arms: int = 2
    """At least so many go on."""
    keep_always: tuple[str, ...] = ()
    """Arms that are never dropped, such as the base; they do not count towards the share."""
    lower_is_better: bool = True

    def __post_init__(self) -> None:
        pairs = zip(self.rungs, self.rungs[1:], strict=False)
        if not self.rungs or self.rungs[0] < 1 or any(a >= b for a, b in pairs):
            raise LabError(
                f"rungs = {list(self.rungs)}: expected rising numbers of seeds, such as [1, 3, 8]."
            )
        if not 0 < self.keep_frac < 1:
            raise LabError(f"keep_frac = {self.keep_frac}: expected a number between 0 and 1.")

    def history(
        self,
        values: Mapping[str, Mapping[int, float]],
        seeds: Sequence[int],
        failed: Sequence[str] = (),
    ) -> list[Rung]:
        """The rounds so far, the unfinished one last. `values` names every arm.

        `seeds` are those of the study, at least as many as the last round has; a round uses the
        first of them. Arms in `failed` are dropped in the round in which a run of theirs lacks.
        """
        if len(seeds) < self.rungs[-1]:
            raise LabError(
                f"seeds = {list(seeds)}: expected at least {self.rungs[-1]}, for the last rung."
            )
        arms, rounds = tuple(values), []
        for i, n in enumerate(self.rungs):
            used = seeds[:n]
            means = {
                arm: float(np.mean([values[arm][s] for s in used]))
                for arm in arms
                if all(s in values[arm] for s in used)
            }
            missing = [arm for arm in arms if arm not in means and arm not in failed]
            kept: tuple[str, ...] = ()
            dropped: tuple[str, ...] = ()
            if not missing and i + 1 < len(self.rungs):
                kept = self._kept(arms, means)
                dropped = tuple(arm for arm in arms if arm not in kept)
            rounds.append(Rung(n, arms, means, kept, dropped, not missing))
            if missing or i + 1 == len(self.rungs):
                return rounds
            arms = kept
        return rounds

    def wanted(
        self,
        values: Mapping[str, Mapping[int, float]],
        seeds: Sequence[int],
        failed: Sequence[str] = (),
    ) -> list[tuple[str, int]]:
        """The (arm, seed) to run now, seed by seed; none when the last round is finished."""
        last = self.history(values, seeds, failed)[-1]
        return [
            (arm, seed)
            for seed in seeds[: last.n_seeds]
            for arm in last.arms
            if seed not in values[arm] and arm not in failed
        ]

    def _kept(self, arms: Sequence[str], means: Mapping[str, float]) -> tuple[str, ...]:
        sign = 1 if self.lower_is_better else -1
        ranked = sorted(
            (arm for arm in means if arm not in self.keep_always), key=lambda a: sign * means[a]
        )
        n = max(self.min_arms, math.ceil(self.keep_frac * len(ranked)))
        going_on = {*ranked[:n], *(arm for arm in self.keep_always if arm in means)}
        return tuple(arm for arm in arms if arm in going_on)
