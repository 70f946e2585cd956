"""What the kernel court decided, in the words of a report."""

from collections.abc import Mapping
from typing import Any

from mixlab.report.markup import plain


def kernels_text(document: Mapping[str, Any]) -> str:
    """Such as "attention by flash (1.20 ms; sdpa: not tried: a kernel agrees)", op by op.

    `document` is the content of kernels.json; empty where there was nothing to decide.
    """
    return plain("; ".join(_verdict(verdict) for verdict in document.get("verdicts") or []))


def _verdict(verdict: Mapping[str, Any]) -> str:
    chosen, rivals = verdict.get("chosen"), verdict.get("candidates") or []
    told = [_result(c) for c in rivals if c.get("name") == chosen]
    told += [f"{c.get('name')}: {_result(c)}" for c in rivals if c.get("name") != chosen]
    return f"{verdict.get('op')} by {chosen or 'the rule of auto'} ({', '.join(told)})"


def _result(candidate: Mapping[str, Any]) -> str:
    if candidate.get("ms") is not None:
        return f"{candidate['ms']:.2f} ms"
    return str(candidate.get("note") or "not tried")
