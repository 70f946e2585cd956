"""Which runs a study wants next, as a pure function of its design and of what is finished.

Everything that is adaptive - the search for rates, screening by halving - is decided here, from
results alone. So a study that was killed goes on where it stood, and two drivers that look at the
same folder want the same runs. Reads plain JSON only: no torch.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mixlab.stats.halving import Halving
from mixlab.studies.job_store import Job
from mixlab.studies.metrics import metric_value
from mixlab.studies.tuning import Search, outcome, scaled, search, with_rate

Design = Mapping[str, Any]
"""The content of study.json."""
Rows = Mapping[str, Mapping[str, Any]]
"""Address -> row of a settled job; see `results.job_row`."""
TYPICAL_TUNING_RUNS = 5


class Entry(NamedTuple):
    """One run that the study wants, and what for."""

    job: Job
    address: str
    arm: str
    purpose: str  # "tuning" or "seed"
    seed: int
    index: int  # of the rate on the arm's grid
    lr: float


class Rounds:
    """The runs of one design; configs are addressed once and remembered."""

    def __init__(self, design: Design) -> None:
        self.design = design
        self.arms = {arm["name"]: arm for arm in design["arms"]}
        self._entries: dict[tuple[str, str, int, int], Entry] = {}

    def entry(self, arm: str, purpose: str, seed: int, index: int) -> Entry:
        """The run of an arm with a seed at a rate."""
        key = (arm, purpose, seed, index)
        if key not in self._entries:
            spec, design = self.arms[arm], self.design
            config = {**with_rate(spec["config"], index), "seed": seed}
            if (purpose, seed) != ("seed", design["seeds"][0]):
                config["checks"] = "off"  # the arm's first run is checked; no figure depends on it
            job = Job(
                "train",
                config,
                spec["data"],
                design["code"]["digest"],
                design["keep"],
                documents=design["documents"],
            )
            lr = scaled(spec["lr"], index)
            self._entries[key] = Entry(job, job.address, arm, purpose, seed, index, lr)
        return self._entries[key]

    # --- what is wanted ---------------------------------------------------------------------

    def entries(self, rows: Rows) -> list[Entry]:
        """Every run that is wanted so far, finished or not, the most urgent first.

        The baseline goes first: its seeds are the noise floor that the report opens with.
        """
        baseline = self.design["baseline"]
        names = sorted(self.arms, key=lambda name: name != baseline)
        tuning = {name: self._tuning_entries(name, rows) for name in names}
        seeds = {name: [] for name in names}
        for name, seed in self._seed_runs(rows):
            index = self.chosen_index(name, rows)
            if index is not None:
                seeds[name].append(self.entry(name, "seed", seed, index))
        found = [*tuning[baseline], *seeds[baseline]]
        for name in names[1:]:
            found += tuning[name]
        for seed in self.design["seeds"]:
            found += [entry for name in names[1:] for entry in seeds[name] if entry.seed == seed]
        return found

    def _tuning_entries(self, name: str, rows: Rows) -> list[Entry]:
        if self.design["tune"] is None:
            return []
        state = self.search(name, rows)
        tried = sorted(self._tried(name, rows))
        indices = tried + [index for index in state.wanted if index not in tried]
        return [
            self.entry(name, "tuning", seed, index)
            for index in indices
            for seed in self.design["tune"]["seeds"]
        ]

    def _seed_runs(self, rows: Rows) -> list[tuple[str, int]]:
        """(arm, seed) of every run that has a place in the ranking."""
        seeds = self.design["seeds"]
        if self.design["screen"] is None:
            return [(name, seed) for seed in seeds for name in self.arms]
        runs = []
        for rung in self.rungs(rows):
            runs += [
                (name, seed)
                for seed in seeds[: rung.n_seeds]
                for name in rung.arms
                if (name, seed) not in runs
            ]
        return runs

    def rungs(self, rows: Rows) -> list[Any]:
        """The rounds of sequential halving so far."""
        return self._halving().history(
            self.values(rows), self.design["seeds"], self._failed_arms(rows)
        )

    def _halving(self) -> Halving:
        return Halving(
            rungs=tuple(self.design["screen"]["rungs"]),
            keep_always=(self.design["baseline"],),
            lower_is_better=self.design["metric"]["lower_is_better"],
        )

    # --- what is known ----------------------------------------------------------------------

    def search(self, name: str, rows: Rows) -> Search:
        """Where the search for an arm's rate stands."""
        return search(self._tried(name, rows), max_runs=self.design["tune"]["max_runs"])

    def _tried(self, name: str, rows: Rows) -> dict[int, float | None]:
        """Index -> mean value over the tuning seeds, of the indices that are settled.

        Indices are found by walking the search from its beginning, so that a run which some other
        arm has made with the same config counts, too.
        """
        lower = self.design["metric"]["lower_is_better"]
        tune = self.design["tune"]
        tried: dict[int, float | None] = {}
        while True:
            state = search(tried, max_runs=tune["max_runs"])
            new = 0
            for index in state.wanted:
                found = [
                    rows.get(self.entry(name, "tuning", seed, index).address)
                    for seed in tune["seeds"]
                ]
                if any(row is None for row in found):
                    continue
                values = [outcome(row, lower_is_better=lower) for row in found]
                good = [value for value in values if value is not None]
                tried[index] = sum(good) / len(good) if len(good) == len(values) else None
                new += 1
            if not new:
                return tried

    def chosen_index(self, name: str, rows: Rows) -> int | None:
        """The rate that the arm's seeds run with; None while it is not known, or none works."""
        if self.design["tune"] is None:
            return 0
        state = self.search(name, rows)
        return state.best if state.status in ("interior", "edge") else None

    def values(self, rows: Rows) -> dict[str, dict[int, float]]:
        """Arm -> seed -> metric, of the runs that are done."""
        found: dict[str, dict[int, float]] = {name: {} for name in self.arms}
        for name in self.arms:
            index = self.chosen_index(name, rows)
            if index is None:
                continue
            for seed in self.design["seeds"]:
                row = rows.get(self.entry(name, "seed", seed, index).address)
                if row is not None and row["value"] is not None:
                    found[name][seed] = row["value"]
        return found

    def _failed_arms(self, rows: Rows) -> list[str]:
        return [name for name in self.arms if self.is_failed(name, rows)]

    def is_failed(self, name: str, rows: Rows) -> bool:
        """Whether a run of the arm was given up that it cannot do without."""
        if self.design["tune"] is not None and self.search(name, rows).status == "failed":
            return True
        index = self.chosen_index(name, rows)
        if index is None:
            return False
        for seed in self.design["seeds"]:
            row = rows.get(self.entry(name, "seed", seed, index).address)
            if row is not None and row["value"] is None:
                return True
        return False

    def n_expected(self, rows: Rows) -> int:
        """Runs that the study will have made in the end, as far as one can tell."""
        entries = self.entries(rows)
        known = len({entry.address for entry in entries})
        missing = 0
        for name in self.arms:
            if self.design["tune"] is None:
                break
            state = self.search(name, rows)
            if state.status == "unfinished":
                n = len(self.design["tune"]["seeds"])
                n_known = sum(e.arm == name and e.purpose == "tuning" for e in entries)
                missing += max(0, TYPICAL_TUNING_RUNS * n - n_known)
                missing += len(self.design["seeds"])
        return known + missing


def value_of(design: Design, summary: Mapping[str, Any]) -> float | None:
    """The study's metric of one finished run."""
    return metric_value(design["metric"]["name"], summary)
