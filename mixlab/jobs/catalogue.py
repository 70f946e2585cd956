"""The registries as tables for people."""

from collections.abc import Iterable

from mixlab.core.registry import Registry
from mixlab.data.corpora import CORPORA
from mixlab.data.tokenizers import TOKENIZERS
from mixlab.nn.channel_mixers import CHANNEL_MIXERS
from mixlab.nn.sequence_mixers import SEQUENCE_MIXERS
from mixlab.tasks import TASKS
from mixlab.training.mirrors import MIRRORS
from mixlab.training.optimizers import OPTIMIZERS
from mixlab.training.schedule import SCHEDULES

TABLES: dict[str, dict[str, Registry]] = {
    "corpora": {"data.corpus": CORPORA},
    "tokenizers": {"data.tokenizer": TOKENIZERS},
    "tasks": {"data.task": TASKS},
    "mixers": {"sequence_mixer": SEQUENCE_MIXERS, "channel_mixer": CHANNEL_MIXERS},
    "optimizers": {"train.optimizer": OPTIMIZERS},
    "schedules": {"train.schedule": SCHEDULES},
    "mirrors": {"log.mirrors": MIRRORS},
}


def entries(what: str) -> list[tuple[str, str, str]]:
    """(config key, kind, first sentence of its documentation) of every entry of a table."""
    return [
        (key, kind, _first_sentence(registry[kind].__doc__ or ""))
        for key, registry in TABLES[what].items()
        for kind in registry
    ]


def _first_sentence(text: str) -> str:
    paragraph: Iterable[str] = text.strip().split("\n\n")[0].split()
    return " ".join(paragraph)
