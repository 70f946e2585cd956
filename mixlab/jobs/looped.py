"""What a run with a looped model says of its depth, measured once, at the end."""

from contextlib import nullcontext
from typing import Any

from mixlab.evals.looped import loss_by_depth, loss_with_exits
from mixlab.jobs.session import Session

N_TOKENS = 16_384
"""Tokens of validation text for each figure."""
MAX_STEPS = 64
"""Deepest step that is looked at."""
THRESHOLDS = {
    "gate": (0.2, 0.35, 0.5, 0.65, 0.8, 0.95),
    "kl_exit": (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4),
}
"""Exit thresholds beside the configured one."""


def is_looped(session: Session) -> bool:
    return session.model.cfg.recursion is not None


def depth_figures(session: Session) -> dict[str, Any]:
    """Validation loss at every depth up to twice the trained one, and with early exits.

    With an average of the parameters, that one is measured, as in every evaluation.
    """
    cfg = session.model.cfg.recursion
    assert cfg is not None
    seq_len = session.config.data.seq_len
    n_windows = min(session.n_eval_windows, max(1, N_TOKENS // seq_len))
    batch_size = session.config.eval.batch_size
    batches = list(session.eval_loader.window_batches(n_windows, batch_size))
    dtype = session.hardware.compute_dtype
    trained, most = cfg.depth.trained_steps, cfg.depth.max_steps
    wanted = min(MAX_STEPS, max(2 * trained, most))
    figures: dict[str, Any] = {
        "trained_steps": trained,
        "max_trained_steps": most,
        "loops_per_step": cfg.loops_per_step,
        "n_tokens": n_windows * seq_len,
    }
    with nullcontext() if session.ema is None else session.ema.applied():
        by_depth = loss_by_depth(session.model, batches, wanted, compute_dtype=dtype)
        figures["by_depth"] = [row._asdict() for row in by_depth]
        if cfg.halting.kind != "fixed":
            configured = cfg.halting.exit_threshold
            thresholds = sorted({*THRESHOLDS[cfg.halting.kind], configured})
            rows = loss_with_exits(session.model, batches, thresholds, compute_dtype=dtype)
            figures["halting"] = cfg.halting.kind
            figures["exit_threshold"] = configured
            figures["with_exits"] = [row._asdict() for row in rows]
    return figures
