"""What a run with a looped model says of its depth, measured once, at the end."""

from contextlib import nullcontext
from typing import Any

from mixlab.data.batch import Batch
from mixlab.data.loader import Loader
from mixlab.evals.looped import (
    AtDepth,
    WithExits,
    loss_with_exits,
    read_exits,
    search_threshold,
    shuffled_nats,
)
from mixlab.jobs.screen import Screen
from mixlab.jobs.session import Session

N_TOKENS = 8192
"""Tokens of text for each figure. Differences are what counts, and both losses are of one text."""
MAX_STEPS = 64
"""Deepest step that is looked at."""
THRESHOLDS = {
    "gate": (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95),
    "kl_exit": (3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4),
}
"""Exit thresholds from eager to careful, of which one is chosen where the config names none."""


def is_looped(session: Session) -> bool:
    return session.model.cfg.recursion is not None


def depth_figures(session: Session, screen: Screen) -> dict[str, Any]:
    """Validation loss at every depth up to twice the trained one, and with early exits.

    With an average of the parameters, that one is measured, as in every evaluation.
    """
    cfg = session.model.cfg.recursion
    assert cfg is not None
    batches = _batches(session, "validation", N_TOKENS)
    dtype = session.hardware.compute_dtype
    trained, most = cfg.depth.trained_steps, cfg.depth.max_steps
    wanted = min(MAX_STEPS, max(2 * trained, most))
    figures: dict[str, Any] = {
        "trained_steps": trained,
        "max_trained_steps": most,
        "loops_per_step": cfg.loops_per_step,
        "n_tokens": sum(batch.n_targets() for batch in batches),
    }
    average = nullcontext() if session.ema is None else session.ema.applied()
    with average:
        with screen.task("Measuring every depth", None):
            # One pass for both: the closing figures are to cost little beside the training.
            by_depth, quality = read_exits(session.model, batches, wanted, compute_dtype=dtype)
            shuffled = shuffled_nats(
                session.model, batches, session.config.seed, compute_dtype=dtype
            )
        full = by_depth[trained - 1]
        figures["by_depth"] = [row._asdict() for row in by_depth]
        figures["input_use"] = {"true_nats": full.loss_nats, "random_nats": shuffled}
        if quality is not None:
            figures.update(_exits(session, batches, full, screen))
            figures["exit_quality"] = quality._asdict()
    return figures


def _exits(session: Session, batches: list[Batch], full: AtDepth, screen: Screen) -> dict[str, Any]:
    """What leaving early costs at some thresholds, and at the chosen one on the test split.

    A chosen threshold is put into the model, and held against the test split: its loss on the text
    that chose it is too good.
    """
    model, dtype = session.model, session.hardware.compute_dtype
    assert model.recursion is not None
    halting = model.recursion.cfg.halting
    configured = halting.exit_threshold

    def measure(threshold: float) -> WithExits:
        return loss_with_exits(model, batches, [threshold], compute_dtype=dtype)[0]

    with screen.task("Trying exit thresholds", None):
        rows, chosen = search_threshold(
            measure, THRESHOLDS[halting.kind], full.loss_nats, halting.exit_max_rise
        )
        if configured is None:
            model.recursion.chosen_threshold = (
                halting.never if chosen is None else chosen.exit_threshold
            )
        elif configured not in (row.exit_threshold for row in rows):
            rows.append(measure(configured))
    used = model.recursion.threshold
    with screen.task("Holding the exits against the test split", None):
        test = _batches(session, "test", N_TOKENS)
        whole, eager = loss_with_exits(model, test, [halting.never, used], compute_dtype=dtype)
    return {
        "halting": halting.kind,
        "exit_threshold": used,
        "is_chosen": configured is None,
        "exit_max_rise": halting.exit_max_rise,
        "with_exits": [row._asdict() for row in rows],
        "test": {**eager._asdict(), "full_loss_nats": whole.loss_nats},
    }


def _batches(session: Session, split: str, n_tokens: int) -> list[Batch]:
    seq_len = session.config.data.seq_len
    loader = session.eval_loader
    if split != "validation":
        loader = Loader(session.data.split(split), seq_len, session.config.seed)
    # Of the test split as much as of the validation split: a run that asks for short evaluations
    # does not want a long one at its end.
    most = min(session.n_eval_windows, loader.n_windows)
    n_windows = min(most, max(1, n_tokens // seq_len))
    return list(loader.window_batches(n_windows, session.config.eval.batch_size))
