"""Are the weights wide enough to take the updates of the learning rate?

A weight near 1 in bfloat16 has steps of 0.004 to 0.008: an update of 0.001 is rounded away, every
time. Norm gains then never move, and rankings of learning rates are rankings of rounding.
"""

import torch
from torch import Tensor, nn

from mixlab.checks.base import CheckContext, Finding, new_generator

MAX_LOST_FRAC = 0.1
"""Share of a tensor's update that rounding may take. Float32 loses a few millionths of a weight,
which is below this for any learning rate above about 1e-6; bfloat16 loses up to all of it."""


def check_master_weights(context: CheckContext) -> Finding:
    """One update at the peak learning rate, against the same update in float64."""
    stored = context.build()
    wide = context.build().double()
    generator = new_generator(30)
    narrow_grads: dict[str, Tensor] = {}
    for name, parameter in stored.named_parameters():
        grad = torch.randn(parameter.shape, generator=generator) / parameter.numel() ** 0.5
        narrow_grads[name] = grad.to(parameter.dtype)
    applied = _update(context, stored, narrow_grads)
    intended = _update(context, wide, narrow_grads)
    lost_frac = {
        name: _ratio((applied[name] - intended[name]).norm(), intended[name].norm())
        for name in intended
    }
    worst = max(lost_frac, key=lambda name: lost_frac[name])
    wanted = sum(int((x != 0).sum()) for x in intended.values())
    stuck = sum(int(((applied[n] == 0) & (x != 0)).sum()) for n, x in intended.items())
    stuck_frac = stuck / max(1, wanted)
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in stored.parameters()})
    figures = {
        "stuck_frac": stuck_frac, "worst_lost_frac": lost_frac[worst], "worst": worst,
        "dtypes": dtypes, "lr": context.optimizer.lr,
    }  # fmt: skip
    measured = (
        f"one update of {context.optimizer.kind} at lr {context.optimizer.lr:g} on "
        f"{', '.join(dtypes)} weights: {100 * stuck_frac:.1f} % of the numbers did not move; "
        f"rounding took {100 * lost_frac[worst]:.2g} % of the update of {worst}"
    )
    if lost_frac[worst] <= MAX_LOST_FRAC:
        meaning = "Updates arrive in the weights as the optimizer meant them."
        return Finding("pass", measured, meaning, figures)
    meaning = (
        "Updates are rounded away before they arrive: some weights cannot learn at this rate. "
        "Keep the weights in float32 and let only matrix products be bfloat16 "
        "(train.precision=bf16 does that), or raise the learning rate."
    )
    return Finding("fail", measured, meaning, figures)


def _update(context: CheckContext, model: nn.Module, grads: dict[str, Tensor]) -> dict[str, Tensor]:
    """What one update adds to every parameter, in float64."""
    before = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.grad = grads[name].to(parameter.dtype)
    context.optimizer.build(model.named_parameters()).step(1.0)
    return {name: p.detach().double() - before[name] for name, p in model.named_parameters()}


def _ratio(part: Tensor, whole: Tensor) -> float:
    """0 where nothing was meant to move and nothing did."""
    if whole == 0:
        return 0.0 if part == 0 else float("inf")
    return (part / whole).item()
