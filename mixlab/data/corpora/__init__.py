"""The corpora that `data.corpus.kind` can name."""

from mixlab.core.registry import Registry
from mixlab.data.corpora.base import CorpusConfig
from mixlab.data.corpora.chat import ChatRows
from mixlab.data.corpora.hub import HubDataset
from mixlab.data.corpora.instructions import Instructions
from mixlab.data.corpora.jsonl import Jsonl
from mixlab.data.corpora.parquet import Parquet
from mixlab.data.corpora.python_sources import PythonPackages, PythonStdlib
from mixlab.data.corpora.recall import RecallText
from mixlab.data.corpora.task import TaskQuestions
from mixlab.data.corpora.text import Text

CORPORA: Registry[CorpusConfig] = Registry(
    {
        "python-stdlib": PythonStdlib,
        "python-packages": PythonPackages,
        "text": Text,
        "jsonl": Jsonl,
        "parquet": Parquet,
        "hf": HubDataset,
        "chat": ChatRows,
        "instructions": Instructions,
        "task": TaskQuestions,
        "recall": RecallText,
    }
)
