"""Where a run can go, from its config alone: the one answer that `show` and `export` give."""

from mixlab.core.run_dir import RunDir
from mixlab.export.verdict import Verdict, verdict
from mixlab.jobs.config import RunConfig

ORIGIN = "origin.json"
"""In the folder of an imported run: where its weights are from."""


def judge(config: RunConfig, run: RunDir | None = None) -> Verdict:
    """The stock architecture of a language model, or the reasons why it has none.

    A run that was imported prefers the architecture that it came from.
    """
    origin = run.read_json(ORIGIN) if run is not None else None
    prefer = origin.get("model_type") if isinstance(origin, dict) else None
    chat = config.data.chat
    return verdict(config.model, prefer, prefix_lm=chat is not None and chat.prefix_lm)
