"""The facts of a study that its checklist names: text, machines, code, pairing, budget."""

from collections.abc import Iterable, Mapping
from typing import Any

from mixlab.core import units
from mixlab.report.material import at, number
from mixlab.report.study.figures import plural

_SPLITS = ("train", "validation", "test")


def study_facts(tree: Mapping[str, Any]) -> dict[str, str]:
    """Name -> text, for what `results.json` says; what it does not say is left out."""
    data, machines = _records(tree.get("data")), _records(tree.get("environments"))
    found = {
        "text": _together(_text(one) for one in data),
        "data hash": _together(str(one.get("content_hash") or "") for one in data),
        "split": _together(_split(one) for one in data),
        "overlap": _together(_overlap(one) for one in data),
        "hardware": _together(_hardware(one) for one in machines),
        "software": _together(_software(one) for one in machines),
        "commit": _commit(tree, machines),
        "code": str(at(tree, "code.digest") or ""),
        "pairing": _pairing(tree.get("paired") or {}),
        "budget": _budget(tree.get("budget") or {}),
        "share of text": _share_of_text(tree, data),
        "tokens per parameter": _tokens_per_parameter(tree),
        "tuning": _tuning(tree.get("tune")),
        "cost": _cost(tree.get("cost") or {}),
        "tuning cost": _cost(at(tree, "cost.tuning") or {}),
    }
    return {name: text for name, text in found.items() if text}


def _records(node: Any) -> list[Mapping[str, Any]]:
    return (
        [one for one in node.values() if isinstance(one, Mapping)]
        if isinstance(node, Mapping)
        else []
    )


def _together(texts: Iterable[str]) -> str:
    """Different texts once each, in order."""
    return "; ".join(dict.fromkeys(text for text in texts if text))


def _text(data: Mapping[str, Any]) -> str:
    kind = at(data, "corpus.kind") or at(data, "task.kind")
    documents, n_bytes = at(data, "read.documents"), at(data, "read.bytes")
    parts = [str(kind)] if kind else []
    if number(documents) is not None:
        parts.append(f"{documents:,} documents")
    if number(n_bytes) is not None:
        parts.append(f"{n_bytes / 1e6:,.1f} MB")
    vocabulary = at(data, "tokenizer.vocab_size")
    if number(vocabulary) is not None:
        parts.append(f"{vocabulary:,} tokens in the vocabulary")
    return ", ".join(parts)


def _split(data: Mapping[str, Any]) -> str:
    splits = {name: one for name, one in (data.get("splits") or {}).items() if name in _SPLITS}
    parts = [
        f"{name} {units.count(one['tokens'])} tokens"
        for name in sorted(splits, key=_SPLITS.index)
        if isinstance(one := splits[name], Mapping) and number(one.get("tokens")) is not None
    ]
    return f"by whole documents before tokenising: {', '.join(parts)}" if parts else ""


def _overlap(data: Mapping[str, Any]) -> str:
    used, n = at(data, "overlap.validation.used"), at(data, "overlap.n_words")
    if number(used) is None:
        return ""
    return (
        f"{units.percent(used)} of the validation text's word {n or 13}-grams also occur in train"
    )


def _hardware(environment: Mapping[str, Any]) -> str:
    device = at(environment, "accelerator.device_name") or at(environment, "cpu.model")
    cores = at(environment, "cpu.n_usable_cores")
    if at(environment, "accelerator.device") in (None, "cpu") and cores:
        return f"{device or 'CPU'}, {plural(int(cores), 'core')}"
    return str(device or "")


def _software(environment: Mapping[str, Any]) -> str:
    packages = environment.get("packages") or {}
    named = {"python": environment.get("python"), **packages}
    return ", ".join(
        f"{name} {named[name]}" for name in ("python", "mixlab", "torch") if named.get(name)
    )


def _commit(tree: Mapping[str, Any], machines: list[Mapping[str, Any]]) -> str:
    commit = at(tree, "code.commit")
    if commit:
        return str(commit)
    return _together(
        f"{git['commit']}{' with uncommitted changes' if git.get('is_dirty') else ''}"
        for git in (one.get("git") or {} for one in machines)
        if git.get("commit")
    )


def _pairing(paired: Mapping[str, Any]) -> str:
    if paired.get("is_paired"):
        return "runs with the same seed saw the same text in the same order (compared by hash)"
    reason = paired.get("reason")
    return f"runs of a seed are not paired: {reason}" if reason else ""


def _budget(budget: Mapping[str, Any]) -> str:
    per_run, total = budget.get("per_run"), budget.get("total")
    parts = [f"{per_run} per run" if per_run else "", f"{total} in all" if total else ""]
    return ", ".join(part for part in parts if part)


def _share_of_text(tree: Mapping[str, Any], data: list[Mapping[str, Any]]) -> str:
    """How much of the training text a run sees, and whether it sees any of it twice."""
    text = number(at(data[0], "splits.train.tokens")) if len(data) == 1 else None
    seen = [n for arm in _arms(tree) if (n := number(at(arm, "planned.tokens"))) is not None]
    if not text or not seen:
        return ""
    most = max(seen) / text
    if most <= 1:
        return f"{units.percent(most)} of the training text, none of it twice"
    return f"the training text {most:.2g} times over"


def _tokens_per_parameter(tree: Mapping[str, Any]) -> str:
    found = []
    for arm in _arms(tree):
        tokens, n_params = number(at(arm, "planned.tokens")), number(arm.get("n_params"))
        if tokens and n_params:
            found.append(tokens / n_params)
    if not found:
        return ""
    ends = [f"{ratio:.2g}" for ratio in (min(found), max(found))]
    return f"{' to '.join(dict.fromkeys(ends))} tokens per parameter"


def _arms(tree: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [arm for arm in tree.get("arms") or () if isinstance(arm, Mapping)]


def _tuning(tune: Any) -> str:
    if not tune:
        return ""
    seeds = tune.get("seeds") if isinstance(tune, Mapping) else None
    text = "learning rate of every arm on a grid of factors of 2, refined once by the root of 2"
    return f"{text}; seeds {', '.join(map(str, seeds))}" if seeds else text


def _cost(cost: Mapping[str, Any]) -> str:
    parts = []
    if number(cost.get("runs")) is not None:
        parts.append(plural(int(cost["runs"]), "run"))
    if number(cost.get("flops")) is not None:
        parts.append(f"{units.flops(cost['flops'])} FLOPs")
    if number(cost.get("seconds")) is not None:
        parts.append(f"{units.duration(cost['seconds'])} of training, added up")
    return ", ".join(parts)
