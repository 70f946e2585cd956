"""lm-evaluation-harness on a model of ours, through the harness' own model interface.

The harness is loaded when a task is asked for: it is an optional package.
Source: Gao et al., "The Language Model Evaluation Harness", version 0.4 (github.com/EleutherAI).
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mixlab.core.errors import LabError
from mixlab.data.tokenizers.base import Tokenizer
from mixlab.evals.likelihood import Advance, Request, Scorer
from mixlab.evals.multiple_choice import encode_pair
from mixlab.infer.engine import Engine
from mixlab.infer.engine import Request as Prompt
from mixlab.infer.sampler import SamplingConfig

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

MAX_NEW_TOKENS = 256
"""Longest answer where a task does not say; the harness' own default."""
_SAMPLING = {"temperature": 1.0, "top_p": None, "top_k": None, "min_p": None}
_KNOWN = {"until", "max_gen_toks", "max_new_tokens", "do_sample", *_SAMPLING}


class HarnessModel:
    """What the harness asks of a model, in our terms; `as_lm` makes it the harness' subclass."""

    def __init__(
        self,
        scorer: Scorer,
        tokenizer: Tokenizer,
        engine: Engine,
        *,
        window: int,
        advance: Advance = lambda n: None,
    ) -> None:
        self.scorer, self.tokenizer, self.engine = scorer, tokenizer, engine
        self.window, self.advance = window, advance
        self.n_cut = 0  # requests whose context lost its start, for want of room

    def loglikelihood(self, requests: "Sequence[Instance]") -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether it is the likeliest text."""
        pairs = [encode_pair(self.tokenizer, *request.args) for request in requests]
        found = self.scorer.score(pairs, self.advance)
        self.n_cut += sum(likelihood.n_dropped > 0 for likelihood in found)
        return [(-likelihood.nats, likelihood.is_greedy) for likelihood in found]

    def loglikelihood_rolling(self, requests: "Sequence[Instance]") -> list[float]:
        """Log-probability of each whole text, in windows as the harness cuts them."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        eos, sums = self.tokenizer.eos_id, []
        for request in requests:
            tokens = self.tokenizer.encode(request.args[0])
            windows = get_rolling_token_windows(tokens, eos, self.window, context_len=1)
            pairs = [Request(*make_disjoint_window(window)) for window in windows]
            if pairs:  # the harness puts the end-of-text token before the first; so does the scorer
                pairs[0] = Request((), pairs[0].continuation)
            sums.append(-math.fsum(found.nats for found in self.scorer.score(pairs)))
            self.advance(1)
        return sums

    def generate_until(self, requests: "Sequence[Instance]") -> list[str]:
        """A text for each prompt, up to the first of its stop strings."""
        texts: dict[int, str] = {}
        keys = []
        for request in requests:
            context, settings = request.args
            prompt = self._prompt(context, settings)
            keys.append(self.engine.add(prompt))
            texts[keys[-1]] = ""
        while self.engine.n_live or self.engine.n_waiting:
            for event in self.engine.step():
                if event.finish == "error":
                    raise LabError(f"a prompt of the harness cannot be answered: {event.message}")
                texts[event.key] += event.text
                if event.finish is not None:
                    self.advance(1)
        return [texts[key] for key in keys]

    def _prompt(self, context: str, settings: Mapping[str, Any]) -> Prompt:
        unknown = sorted(set(settings) - _KNOWN)
        if unknown:
            raise LabError(
                f"generation_kwargs.{unknown[0]} = {settings[unknown[0]]!r}: expected one of "
                f"{', '.join(sorted(_KNOWN))}. Change the task's file."
            )
        until = settings.get("until") or ()
        stop = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
        n_new = settings.get("max_new_tokens", settings.get("max_gen_toks", MAX_NEW_TOKENS))
        ids = self.tokenizer.encode(context)
        # As the harness does with its own models: the start goes where both do not fit.
        n_new = min(int(n_new), self.engine.context - 1)
        room = self.engine.context - n_new
        self.n_cut += len(ids) > room
        drawn = {key: settings.get(key, default) for key, default in _SAMPLING.items()}
        if not settings.get("do_sample", False):
            drawn = {"temperature": 0.0}
        return Prompt(
            prompt=ids[-room:],
            max_new_tokens=n_new,
            sampling=SamplingConfig(**drawn),
            stop=stop,
        )

    def as_lm(self) -> Any:
        """An `lm_eval.api.model.LM` that asks this object."""
        from lm_eval.api.model import LM

        ours = self

        class MixlabLM(LM):
            def loglikelihood(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
                return ours.loglikelihood(requests)

            def loglikelihood_rolling(self, requests: Any, **_: Any) -> list[float]:
                return ours.loglikelihood_rolling(requests)

            def generate_until(self, requests: Any, **_: Any) -> list[str]:
                return ours.generate_until(requests)

        return MixlabLM()
