"""Byte-level BPE, trained on the training split.

Source: Sennrich, Haddow, Birch, "Neural Machine Translation of Rare Words with Subword Units"
(arXiv:1508.07909), over bytes as in GPT-2, with GPT-2's way of splitting words.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import tokenizers
from pydantic import Field
from tokenizers import decoders, models, pre_tokenizers, trainers

from mixlab.data.tokenizers.base import EOS, Tokenizer, TokenizerConfig


class Bpe(TokenizerConfig):
    """Byte-level BPE trained for this corpus; any text can be encoded and comes back exactly."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: int = Field(default=4096, ge=257, le=1 << 20)
    """Entries with the 256 bytes, EOS and a chat template's marks. A small corpus may not have
    that many pairs which occur twice; the tokenizer then has fewer, and says so."""
    max_train_bytes: int = Field(default=50_000_000, ge=1)
    """Merges are learned from the training documents of lowest hash up to this many bytes, which
    is a random sample of a larger corpus."""

    def identity(self) -> dict[str, str] | None:
        return None

    def build(self, texts: Iterator[str], special_tokens: Sequence[str] = ()) -> Tokenizer:
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size - 1 - len(special_tokens),
            min_frequency=2,  # a pair seen once is a name, not a habit of the text
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(self._sample(texts), trainer=trainer)
        backend.add_special_tokens([tokenizers.AddedToken(EOS, special=True, normalized=False)])
        return Tokenizer(backend, EOS).with_special_tokens(special_tokens)

    def _sample(self, texts: Iterator[str]) -> Iterator[str]:
        n_bytes = 0
        for text in texts:
            yield text
            n_bytes += len(text.encode())
            if n_bytes >= self.max_train_bytes:
                return
