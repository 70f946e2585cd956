"""The simplest tokenizer: every byte is a token."""

import tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from mixlab.data.tokenizers.base import Tokenizer


def byte_tokenizer():
    """Every byte is a token; the end-of-text token is 256."""
    vocab = {char: i for i, char in enumerate(sorted(ByteLevel.alphabet()))}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken("<|endoftext|>", special=True)])
    return Tokenizer(backend, "<|endoftext|>")
