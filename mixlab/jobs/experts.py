"""What a run's experts specialised in, measured at its end and left in the run folder."""

from contextlib import nullcontext

from mixlab.core.run_dir import RunDir
from mixlab.evals.expert_choice import expert_choice, expert_choices, spread_windows
from mixlab.jobs.session import Session
from mixlab.nn.channel_mixers.moe import MoE

N_TOKENS = 16_384
"""Tokens of validation text that the experts are asked about."""


def has_experts(session: Session) -> bool:
    return any(isinstance(block.channel_mixer, MoE) for block in session.model.blocks)


def write_expert_choice(run: RunDir, session: Session, step: int) -> None:
    """Write experts.json: what the routers choose on windows of the evaluated text.

    With an average of the parameters, that one is asked, as in every evaluation.
    """
    n_wanted = max(1, N_TOKENS // session.config.data.seq_len)
    batches = spread_windows(
        session.eval_loader, session.n_eval_windows, n_wanted, session.config.eval.batch_size
    )
    with nullcontext() if session.ema is None else session.ema.applied():
        choices = expert_choices(session.model, batches, session.hardware.compute_dtype)
    facts = {"step": step, "weights": "raw" if session.ema is None else "ema"}
    run.write_json("experts.json", facts | expert_choice(choices, session.data.tokenizer))
