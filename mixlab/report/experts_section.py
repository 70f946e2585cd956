"""The report's section on mixture-of-experts layers: how evenly, how decidedly, and for what."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixlab.core import units
from mixlab.report.expert_loads import Loads, expert_loads, moe_layers
from mixlab.report.experts import experts_path
from mixlab.report.markup import code, plain, table
from mixlab.report.material import Facts, Material, number

_N_LAST = 20  # steps at the end over which loads are averaged: one step is too noisy
_MOST_EXPERTS_NAMED = 16  # beyond that a table of single experts is no longer read
_N_FOREMOST = 3  # experts that are named for a class of tokens


def experts_section(m: Material) -> str:
    """The section in markdown; empty for a run without expert layers."""
    names = moe_layers(m.metrics)
    loads = {name: expert_loads(m.metrics, name, 1, last=_N_LAST) for name in names}
    choice = m.experts if isinstance(m.experts.get("layers"), Mapping) else {}
    if not (any(loads.values()) or choice):
        return ""
    parts = ["## Experts"]
    picture = experts_path(m.run)
    if picture.is_file():
        parts.append(f"![Load of every expert]({picture.relative_to(m.run.path).as_posix()})")
    known = {name: found for name, found in loads.items() if found is not None}
    if known:
        parts.append(_use(known, min(_N_LAST, len(m.metrics.get("step") or []))))
    parts.append(_choice(choice) if choice else _NO_CHOICE)
    return "\n\n".join(parts)


_NO_CHOICE = "Which tokens each expert takes is measured when a run ends."


# --- use ----------------------------------------------------------------------------------------


def _use(layers: Mapping[str, Loads], n_steps: int) -> str:
    header = ["layer", "least used", "most used", "max / mean of one step", "dead", "entropy"]
    rows = []
    for name, found in layers.items():
        load = found.load[-1]
        if not np.isfinite(load).all():
            rows.append([_layer(name), "", "", "", "", ""])
            continue
        n = len(load)
        rows.append(
            [
                _layer(name),
                f"{load.min():.2f} (expert {load.argmin()})",
                f"{load.max():.2f} (expert {load.argmax()})",
                units.three_digits(found.max_load[-1]),
                f"{int((load == 0).sum())} of {n}",
                units.three_digits(found.entropy_frac[-1]),
            ]
        )
    when = "the last step" if n_steps == 1 else f"the last {n_steps} steps"
    explained = (
        f"How experts were used over {when}. A load is an expert's tokens over the mean of its "
        "layer, so 1 is even. Dead experts had no token in any of these steps. Entropy tells how "
        "undecided the router was, as a share of ln E: 1 if it were indifferent, 0 if certain."
    )
    return f"{explained}\n\n{table(header, rows, numbers=True)}"


# --- choice -------------------------------------------------------------------------------------


def _choice(choice: Facts) -> str:
    layers: Mapping[str, Facts] = choice["layers"]
    rows = []
    for name, layer in layers.items():
        bits, chance, most = (
            number(layer.get(key)) for key in ("bits", "chance_bits", "most_bits")
        )
        if bits is None or chance is None or most is None:
            continue
        rows.append(
            [
                _layer(name),
                f"{bits:.3f}",
                f"{chance:.3f}",
                f"{most:.3f}",
                units.percent(max(0.0, bits - chance) / (most - chance)) if most > chance else "",
                "yes" if bits > (number(layer.get("chance_high_bits")) or 0.0) else "no",
            ]
        )
    header = ["layer", "bits", "by chance", "at most", "share of it", "beyond chance"]
    explained = (
        f"Which tokens the experts take, over {units.count(number(choice.get('n_tokens')))} tokens "
        "of validation text. The bits are the mutual information of a token's class (such as "
        "number or line break) and its experts: 0 if every class goes to all experts alike. "
        "Finitely many tokens give more than 0 even then: how much, is measured by dealing the "
        "classes to the tokens at random; more than in any of these trials is beyond chance, at "
        "odds of 19 to 1. "
        "An untrained router also sends like tokens to like experts, so a small share is no "
        "evidence of anything learnt."
    )
    parts = [explained, table(header, rows, numbers=True)]
    strongest = max(layers, key=lambda name: _excess(layers[name]))
    parts.append(_classes(choice, strongest))
    return "\n\n".join(part for part in parts if part)


def _excess(layer: Facts) -> float:
    return (number(layer.get("bits")) or 0.0) - (number(layer.get("chance_bits")) or 0.0)


def _classes(choice: Facts, name: str) -> str:
    """The layer `name` in detail: the foremost experts of every class, then tokens by expert."""
    layer = choice["layers"][name]
    counts = np.asarray(layer.get("counts") or [[]], dtype=float)  # (C, E)
    if counts.ndim != 2 or counts.sum() == 0:
        return ""
    k = int(layer.get("n_active_experts") or 1)
    # A token takes k experts, so an expert has a share of a class's tokens between 0 and 1.
    overall = k * counts.sum(axis=0) / counts.sum()
    rows = []
    for label, n_tokens, row in zip(
        choice.get("classes") or [], choice.get("class_tokens") or [], counts, strict=False
    ):
        if row.sum() == 0:
            continue
        share = k * row / row.sum()
        foremost = np.argsort(-share, kind="stable")[: min(_N_FOREMOST, len(share))]
        named = [
            f"{e}: {units.percent(share[e])} ({share[e] / overall[e]:.1f} x)"
            for e in foremost
            if share[e] > 0
        ]
        rows.append([plain(str(label)), units.count(n_tokens), ", ".join(named)])
    parts = [
        f"{_layer(name).capitalize()}, where the class tells most. For every class the experts "
        "that take the largest share of its tokens, with that share over the expert's share of "
        "all tokens.",
        table(["class", "tokens", "experts"], rows),
    ]
    typical = layer.get("typical") or []
    if 0 < len(typical) <= _MOST_EXPERTS_NAMED:
        parts.append(_typical(typical, overall))
    return "\n\n".join(parts)


def _typical(typical: Sequence[Sequence[Any]], overall: np.ndarray) -> str:
    rows = [
        [str(e), units.percent(overall[e]), " ".join(code(str(text)) for text in texts)]
        for e, texts in enumerate(typical)
        if e < len(overall)
    ]
    header = ["expert", "of all tokens", "tokens that it takes most beyond that share"]
    return table(header, rows)


def _layer(name: str) -> str:
    return plain(name.replace("_", " "))
