"""A study at a size for a CPU: every width, length and batch divided by the same numbers.

`mixlab train --smoke` cuts each recipe down to fixed small sizes; arms that differ in a size would
become equal. Here all arms shrink in proportion to the baseline, and layers, patterns, loops and
numbers of experts stay, so that arms which differ still differ. Text that is large or far away is
replaced by the standard library.
"""

from typing import Any

from mixlab.core.config import Tree
from mixlab.jobs.config import AnyRunConfig, RunConfig

D_MODEL, HEAD_DIM, SEQ_LEN, MAX_SEQ_LEN = 64, 16, 64, 256
VOCAB_SIZE, BATCH_SIZE, N_STEPS, EVAL_TOKENS, NEW_TOKENS = 512, 4, 150, 8192, 16
_WIDTHS = ("d_model", "d_ff", "d_expert", "kv_lora_rank", "q_lora_rank", "d_gate")
_HEADS = ("head_dim", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim")
_LARGE = ("python-packages", "hf")
_PUZZLES = {"n_train": 256, "n_validation": 32, "n_test": 32}


class Scale:
    """By how much the baseline shrinks, and every arm with it."""

    def __init__(self, baseline: AnyRunConfig, tree: Tree) -> None:
        self.width = min(1.0, D_MODEL / baseline.model.d_model)
        heads = list(_values(tree["model"], _HEADS))
        self.head = min(1.0, HEAD_DIM / max(heads)) if heads else 1.0
        self.batch = min(1.0, BATCH_SIZE / baseline.train.batch_size)
        length = baseline.train.length
        self.n_steps = int(length.amount) if length.unit == "steps" else None
        self.seq = 1.0
        if isinstance(baseline, RunConfig):
            self.seq = min(1.0, SEQ_LEN / baseline.data.seq_len)

    def shrink(self, tree: Tree) -> Tree:
        """The whole config of an arm."""
        data, model, train = (
            _small_text(tree["data"]),
            self._model(tree["model"]),
            {**tree["train"]},
        )
        if "seq_len" in data:
            data["seq_len"] = _scaled(data["seq_len"], self.seq, 8)
            model["max_seq_len"] = max(data["seq_len"], min(model["max_seq_len"], MAX_SEQ_LEN))
            tokenizer = dict(data["tokenizer"])
            if tokenizer["kind"] == "bpe":
                tokenizer["vocab_size"] = min(tokenizer["vocab_size"], VOCAB_SIZE)
                model["vocab_size"] = min(model["vocab_size"], VOCAB_SIZE)
            data["tokenizer"] = tokenizer
        for key, most in _PUZZLES.items():
            if key in data:
                data[key] = min(data[key], most)
        self._train(train)
        small = {**tree, "data": data, "model": model, "train": train}
        n_tokens = min(tree["eval"]["n_tokens"], EVAL_TOKENS)
        small["eval"] = {**tree["eval"], "every": N_STEPS // 3, "n_tokens": n_tokens}
        small["checkpoint"] = {**tree["checkpoint"], "every": N_STEPS // 2, "keep_every": None}
        if "sample" in tree:
            few = {"n": min(tree["sample"]["n"], 1), "max_new_tokens": NEW_TOKENS}
            small["sample"] = {**tree["sample"], **few}
        return small

    def _model(self, node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        small = {}
        for key, value in node.items():
            if key in _WIDTHS and isinstance(value, int):
                small[key] = _scaled(value, self.width, 8)
            elif key in _HEADS and isinstance(value, int) and value:
                small[key] = _scaled(value, self.head, 8)
            elif key == "window" and isinstance(value, int):
                small[key] = max(2, round(value * self.seq))
            else:
                small[key] = self._model(value)
        return small

    def _train(self, train: Tree) -> None:
        n_micro = 1
        if train.get("micro_batch_size"):
            n_micro = min(train["batch_size"] // train["micro_batch_size"], 2)
            train["micro_batch_size"] = None
        size = max(1, round(train["batch_size"] * self.batch))
        train["batch_size"] = max(n_micro, size - size % n_micro)
        if n_micro > 1:
            train["micro_batch_size"] = train["batch_size"] // n_micro
        # bfloat16 gains nothing at this size, and costs a third more time on a CPU.
        train.update(length=f"{N_STEPS} steps", compile=False, bridge=None, precision="fp32")
        schedule = dict(train["schedule"])
        if schedule.get("warmup_steps"):
            share = schedule["warmup_steps"] / self.n_steps if self.n_steps else 0.1
            schedule["warmup_steps"] = max(1, min(N_STEPS // 3, round(share * N_STEPS)))
        train["schedule"] = schedule


def _small_text(data: Tree) -> Tree:
    """The data with the standard library in place of text that is large, or far away."""
    data = dict(data)
    if data.get("corpus", {}).get("kind") in _LARGE:
        data["corpus"] = {"kind": "python-stdlib"}
    if data.get("tokenizer", {}).get("kind") == "hub":
        data["tokenizer"] = {"kind": "bpe", "vocab_size": VOCAB_SIZE}
    return data


def _scaled(value: int, scale: float, step: int) -> int:
    """`value` times `scale` as a multiple of `step`; never larger than it was."""
    return min(value, max(step, round(value * scale / step) * step))


def _values(node: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in keys and isinstance(value, int):
                yield value
            else:
                yield from _values(value, keys)
