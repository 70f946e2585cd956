"""How a run is talked to: its template, found in the run folder."""

from mixlab.core.config import read_yaml
from mixlab.core.errors import RunError
from mixlab.core.run_dir import RunDir
from mixlab.data.chat.templates import TEMPLATES, ChatFormat
from mixlab.data.tokenizers.base import Tokenizer
from mixlab.jobs.config import RunConfig, decode_config


def open_chat_format(run: RunDir, tokenizer: Tokenizer) -> ChatFormat:
    """The template of a run, with the tokenizer that its weights were trained with.

    A run that was trained on plain text has `plain`, and says so by `is_tuned`.

    Raises:
        RunError: the run writes no text.
        DataError: the tokenizer lacks the template's special tokens.
    """
    config = decode_config(read_yaml(run.config_path))
    if not isinstance(config, RunConfig):
        raise RunError(
            f"run {run.path}: is of kind {config.kind}, which solves puzzles and cannot be talked "
            "to."
        )
    chat = config.data.chat
    if chat is None:
        return ChatFormat(TEMPLATES["plain"], tokenizer, is_tuned=False)
    return ChatFormat(TEMPLATES[chat.template], tokenizer, is_tuned=True, prefix_lm=chat.prefix_lm)
