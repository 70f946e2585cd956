"""One prompt in, tokens out, one cached step at a time."""

from collections.abc import Iterator, Sequence

from mixlab.infer.decoding.row_model import row_model
from mixlab.infer.engine import Engine, Request
from mixlab.infer.sampler import SamplingConfig
from mixlab.nn.language_model import LanguageModel
from mixlab.nn.recursion.loop_pass import Loops


class _Ids:
    """A vocabulary of which only the ids matter."""

    def __init__(self, eos_id: int | None, vocab_size: int) -> None:
        self.eos_id = -1 if eos_id is None else eos_id
        self.vocab_size = vocab_size

    def decode(self, ids: Sequence[int]) -> str:
        return ""


def generate_tokens(
    model: LanguageModel,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: SamplingConfig,
    seed: int,
    eos_id: int | None = None,
    n_known_tokens: int | None = None,
    loops: Loops | None = None,
) -> Iterator[int]:
    """Continue `prompt` by up to `max_new_tokens` tokens, ending before `eos_id`.

    An empty prompt begins a new document, as if after `eos_id`. Tokens from `n_known_tokens` on
    (rows of the embedding that no text maps to) are never drawn. A looped model loops as `loops`
    says; absent, to its trained depth, and tokens leave by its exit rule.

    Raises:
        LabError: prompt and answer exceed the model's `max_seq_len`, or a number is not one.
    """
    words = _Ids(eos_id, n_known_tokens or model.cfg.vocab_size)
    engine = Engine(row_model(model, loops=loops), words, max_rows=1)
    engine.add(Request(prompt, max_new_tokens, sampling, seed))
    return _tokens(engine)


def _tokens(engine: Engine) -> Iterator[int]:
    while engine.n_live or engine.n_waiting:
        for event in engine.step():
            if event.token is not None:
                yield event.token
