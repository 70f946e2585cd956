"""The tokenizers that `data.tokenizer.kind` can name."""

from mixlab.core.registry import Registry
from mixlab.data.tokenizers.base import TokenizerConfig
from mixlab.data.tokenizers.bpe import Bpe
from mixlab.data.tokenizers.ready_made import FromFile, FromHub

TOKENIZERS: Registry[TokenizerConfig] = Registry({"bpe": Bpe, "file": FromFile, "hub": FromHub})
