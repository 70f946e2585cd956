"""The `data:` node of a run: which text, how it is split, tokenised and cut into sequences."""

from typing import Any, Literal

from pydantic import Field, model_validator

from mixlab.core.config import Config
from mixlab.core.errors import Rule
from mixlab.data.chat.config import ChatConfig
from mixlab.data.corpora import CORPORA
from mixlab.data.tokenizers import TOKENIZERS


class SplitConfig(Config):
    """How much is held out, and how much of it may also occur in the training text.

    The split is always by whole documents and before tokenising; there is no other way to ask for.
    """

    validation_frac: float = Field(default=0.05, gt=0, le=0.4)
    """Fraction of the bytes that goes to validation, at least."""
    test_frac: float = Field(default=0.05, gt=0, le=0.4)
    """Fraction of the bytes that goes to the test split, at least."""
    min_validation_tokens: int = Field(default=100_000, ge=0)
    """Validation is enlarged to about this many tokens, though not beyond a fifth of the bytes."""
    max_overlap: float = Field(default=0.3, ge=0, le=1)
    """Highest tolerated fraction of a held-out split's word 13-grams that also occur in train.
    Text without copies stays far below (standard library: 2 %); installed packages with their
    vendored and generated siblings lie far above (20 to 25 %) until `drop` is set."""
    on_overlap: Literal["stop", "drop"] = "stop"
    """`stop` ends the run above `max_overlap`. `drop` first leaves out those validation and test
    documents that overlap by more than `max_document_overlap`, then applies the same limit."""
    max_document_overlap: float = Field(default=0.5, ge=0, le=1)
    """The limit of `on_overlap: drop` for one document."""

    def model_post_init(self, context: Any) -> None:
        held_out = self.validation_frac + self.test_frac
        if held_out > 0.5:
            raise Rule(
                "validation_frac",
                self.validation_frac,
                f"with test_frac = {self.test_frac} at most half of the text held out",
            )


class DataConfig(Config):
    """Everything between a source of text and a batch."""

    corpus: CORPORA.annotation()  # type: ignore[valid-type]
    """Where the text comes from."""
    split: SplitConfig = SplitConfig()
    """How documents are dealt to train, validation and test."""
    tokenizer: TOKENIZERS.annotation()  # type: ignore[valid-type]
    """How text becomes token ids."""
    seq_len: int = Field(default=256, ge=1, le=1 << 20)
    """Tokens per training sequence."""
    chat: ChatConfig | None = None
    """How examples of question and answer are written; only for corpora that hold them."""

    @model_validator(mode="before")
    @classmethod
    def _chat_where_due(cls, tree: Any) -> Any:
        """Examples have a template whether or not it is named; it belongs into config.yaml."""
        corpus = tree.get("corpus") if isinstance(tree, dict) else None
        kind = corpus.get("kind") if isinstance(corpus, dict) else getattr(corpus, "kind", None)
        has_examples = isinstance(kind, str) and kind in CORPORA and CORPORA[kind].has_examples
        if not has_examples or tree.get("chat") is not None:
            return tree
        return {**tree, "chat": {}}

    @model_validator(mode="after")
    def _chat_fits(self) -> "DataConfig":
        if self.chat is not None and not self.corpus.has_examples:
            kinds = ", ".join(kind for kind in CORPORA if CORPORA[kind].has_examples)
            raise Rule(
                "chat", self.chat.template,
                f"nothing with the corpus {self.corpus.kind}, which is plain text",
                f"Examples of question and answer come from {kinds}.",
            )  # fmt: skip
        return self
