"""A recipe at a fraction of its size: the same kinds in the same pattern, minutes become seconds.

For `--smoke`, which shows that a recipe runs from end to end, and for the checks before a run,
whose answers do not depend on width or depth. Its losses say nothing about the recipe.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from mixlab.core.config import Tree, decode, to_tree
from mixlab.core.run_dir import is_run
from mixlab.jobs.config import RunConfig, load_config
from mixlab.nn.language_model import LanguageModelConfig
from mixlab.nn.pattern import Pattern

D_MODEL, HEAD_DIM, D_FF, D_EXPERT, RANK = 64, 16, 128, 32, 16
VOCAB_SIZE, SEQ_LEN, MAX_SEQ_LEN = 512, 64, 256
N_STEPS, BATCH_SIZE, EVAL_TOKENS, NEW_TOKENS = 20, 4, 1024, 16
MAX_RUN = 2
"""Neighbouring layers of one block that are kept: enough for a layer to follow its like."""


def load_shrunk(name_or_file: str, overrides: Sequence[str] = ()) -> RunConfig:
    """A recipe, a YAML file or a run's config with its overrides, then shrunk.

    Raises:
        LabError: no such recipe, or it is not valid.
    """
    path = Path(name_or_file)
    source = str(path / "config.yaml") if is_run(path) else name_or_file
    return shrink(load_config(source, overrides))


def shrink(config: RunConfig) -> RunConfig:
    """`config` with smaller widths, fewer layers, shorter sequences and `N_STEPS` updates.

    Kinds, the order of blocks along the depth, ratios such as query heads per key head, and every
    switch stay. A tokenizer that is not trained here keeps its vocabulary. Nothing grows, and
    shrinking twice is shrinking once.
    """
    tree = to_tree(config)
    old_len = config.data.seq_len
    seq_len = min(old_len, SEQ_LEN)
    tree["data"]["seq_len"] = seq_len
    vocab_size = _shrink_tokenizer(tree["data"]["tokenizer"], config.model.vocab_size)
    tree["model"] = to_tree(shrink_model(config.model, seq_len / old_len, vocab_size))
    _shrink_training(tree, config)
    if not config.name.endswith("-smoke"):
        tree["name"] = f"{config.name[:90]}-smoke"
    return decode(RunConfig, tree)


def shrink_model(
    model: LanguageModelConfig, len_frac: float, vocab_size: int
) -> LanguageModelConfig:
    """The model alone; `len_frac` is by how much its sequences, and so its windows, get shorter."""
    tree = to_tree(model)
    tree["d_model"] = min(model.d_model, D_MODEL)
    tree["vocab_size"] = vocab_size
    tree["max_seq_len"] = min(model.max_seq_len, MAX_SEQ_LEN)
    layers = _thin(model.layers())
    tree["n_layers"] = len(layers)
    if model.pattern is not None:
        tree["pattern"] = _pattern(model.pattern, layers)
    for block in tree["blocks"].values():
        sequence, channel = block["sequence_mixer"], block["channel_mixer"]
        SEQUENCE_MIXERS[sequence["kind"]](sequence, len_frac)
        CHANNEL_MIXERS[channel["kind"]](channel)
    return decode(LanguageModelConfig, tree)


# --- depth --------------------------------------------------------------------------------------


def _thin(layers: list[str]) -> list[str]:
    """The layers without those that have `MAX_RUN` of their like right before them."""
    return [
        name
        for i, name in enumerate(layers)
        if i < MAX_RUN or any(before != name for before in layers[i - MAX_RUN : i])
    ]


def _pattern(pattern: Pattern, layers: list[str]) -> Tree:
    """The same layers in the words that the recipe uses; `every` may be uneven now: `at`."""
    if pattern.motif is not None:
        return {"motif": layers}
    at = [i for i, name in enumerate(layers) if name == pattern.block]
    return {"block": pattern.block, "at": at, "rest": pattern.rest}


# --- width --------------------------------------------------------------------------------------


def _attention(mixer: Tree, len_frac: float) -> None:
    groups = mixer["n_kv_heads"] or mixer["n_heads"]
    kept = min(groups, 2)
    mixer["n_heads"] = kept * min(mixer["n_heads"] // groups, 2)
    mixer["n_kv_heads"] = kept if mixer["n_kv_heads"] is not None else None
    mixer["head_dim"] = _rotary_head_dim(mixer["head_dim"], mixer["rope_frac"])
    if mixer["window"] is not None:
        # Not down to 1, which leaves queries and keys without effect.
        mixer["window"] = max(min(mixer["window"], 2), round(mixer["window"] * len_frac))


def _rotary_head_dim(head_dim: int, rope_frac: float) -> int:
    """The smallest width from `HEAD_DIM` on whose turned part is even, and there if it was."""
    for width in range(min(HEAD_DIM, head_dim), head_dim):
        turned = round(width * rope_frac)
        if turned % 2 == 0 and bool(turned) == bool(round(head_dim * rope_frac)):
            return width
    return head_dim


def _mla(mixer: Tree, len_frac: float) -> None:
    mixer["n_heads"] = min(mixer["n_heads"], 2)
    for rank in ("q_lora_rank", "kv_lora_rank"):
        if mixer[rank] is not None:
            mixer[rank] = min(mixer[rank], RANK)
    for width in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
        mixer[width] = min(mixer[width], HEAD_DIM)  # 0 stays 0, and HEAD_DIM is even


def _gated_deltanet(mixer: Tree, len_frac: float) -> None:
    per_key_head = (mixer["n_v_heads"] or mixer["n_heads"]) // mixer["n_heads"]
    mixer["n_heads"] = min(mixer["n_heads"], 2)
    if mixer["n_v_heads"] is not None:
        mixer["n_v_heads"] = mixer["n_heads"] * min(per_key_head, 2)
    if mixer["backend"] == "flash_qla":
        return  # takes heads of one width only
    old = mixer["head_dim"]
    mixer["head_dim"] = min(old, HEAD_DIM)
    if mixer["v_head_dim"] is not None:
        scaled = mixer["v_head_dim"] * mixer["head_dim"] // old
        mixer["v_head_dim"] = max(1, min(mixer["v_head_dim"], scaled))


def _mlp(mixer: Tree) -> None:
    mixer["d_ff"] = min(mixer["d_ff"], D_FF)


def _moe(mixer: Tree) -> None:
    """Never fewer than 2 active of several, so that top-k stays what it was; all stays all."""
    n_experts, n_active = mixer["n_experts"], mixer["n_active_experts"]
    kept = min(n_active, 2)
    mixer["n_active_experts"] = kept
    mixer["n_experts"] = kept if n_active == n_experts else min(n_experts, 4)
    mixer["d_expert"] = min(mixer["d_expert"], D_EXPERT)
    mixer["n_shared_experts"] = min(mixer["n_shared_experts"], 2)


SEQUENCE_MIXERS: dict[str, Callable[[Tree, float], None]] = {
    "attention": _attention,
    "gated_deltanet": _gated_deltanet,
    "mla": _mla,
}
CHANNEL_MIXERS: dict[str, Callable[[Tree], None]] = {"mlp": _mlp, "moe": _moe}


# --- the rest -----------------------------------------------------------------------------------


def _shrink_tokenizer(tokenizer: Tree, model_vocab_size: int) -> int:
    """Rows of the embedding: few for a tokenizer that is trained for the recipe."""
    if tokenizer["kind"] != "bpe":
        return model_vocab_size
    vocab_size = min(tokenizer["vocab_size"], VOCAB_SIZE)
    tokenizer["vocab_size"] = vocab_size
    return min(model_vocab_size, VOCAB_SIZE)


def _shrink_training(tree: Tree, config: RunConfig) -> None:
    train, old = tree["train"], config.train
    n_old = int(old.length.amount) if old.length.unit == "steps" else None
    n_steps = N_STEPS if n_old is None else min(N_STEPS, n_old)
    train["length"] = f"{n_steps} steps"
    n_micro = min(old.n_micro_batches, 2)
    size = min(old.batch_size, BATCH_SIZE)
    train["batch_size"] = max(n_micro, size - size % n_micro)
    if old.micro_batch_size is not None:
        train["micro_batch_size"] = train["batch_size"] // n_micro
    train["bridge"] = None
    train["compile"] = False  # compiling takes longer than the whole smoke run
    warmup = train["schedule"].get("warmup_steps", 0)
    if warmup:
        share = warmup / n_old if n_old else 0.1
        train["schedule"]["warmup_steps"] = max(1, min(warmup, round(share * n_steps)))
    for key in ("eval", "checkpoint"):
        tree[key]["every"] = min(tree[key]["every"], N_STEPS // 2)
    if tree["checkpoint"]["keep_every"] is not None:
        tree["checkpoint"]["keep_every"] = min(tree["checkpoint"]["keep_every"], N_STEPS // 2)
    tree["eval"]["n_tokens"] = min(tree["eval"]["n_tokens"], EVAL_TOKENS)
    tree["eval"]["batch_size"] = min(tree["eval"]["batch_size"], 2 * BATCH_SIZE)
    tree["sample"]["n"] = min(tree["sample"]["n"], 1)
    tree["sample"]["max_new_tokens"] = min(tree["sample"]["max_new_tokens"], NEW_TOKENS)
