"""How deep a looped run goes when it writes: what its training chose, and what a user asks for."""

from mixlab.core.errors import LabError, RunError
from mixlab.core.run_dir import RunDir
from mixlab.nn.language_model import LanguageModel
from mixlab.nn.recursion.loop_pass import MAX_LOOPS, Loops


def use_chosen_threshold(run: RunDir, model: LanguageModel) -> None:
    """Let tokens of a looped model leave at the threshold that was chosen when training ended.

    A run that is not over, or whose summary is damaged, keeps the one that holds until then.
    """
    if model.recursion is None or model.recursion.cfg.halting.kind == "fixed":
        return
    try:
        depth = (run.read_json("summary.json") or {}).get("depth") or {}
    except (RunError, AttributeError):
        return
    chosen = depth.get("exit_threshold") if depth.get("is_chosen") else None
    if isinstance(chosen, int | float):
        model.recursion.chosen_threshold = float(chosen)


def decoding_loops(
    model: LanguageModel, depth: int | None = None, threshold: float | None = None
) -> Loops | None:
    """How to loop while writing; None for a plain model.

    Args:
        depth: steps that a token takes at most; None: those that the model was trained for.
        threshold: when a token leaves before; None: as the run has it.

    Raises:
        LabError: the model has no loops, none of its tokens may leave, or a number is out of range.
    """
    looped = model.recursion
    if looped is None:
        for name, value in (("depth", depth), ("threshold", threshold)):
            if value is not None:
                raise LabError(
                    f"{name} = {value}: expected a run of a looped model (model.recursion), which "
                    "this is not. Leave it out."
                )
        return None
    most = MAX_LOOPS // looped.cfg.loops_per_step
    if depth is not None and (isinstance(depth, bool) or not 1 <= depth <= most):
        raise LabError(f"depth = {depth}: expected a whole number of steps from 1 to {most}.")
    halting = looped.cfg.halting
    if threshold is not None:
        if halting.kind == "fixed":
            raise LabError(
                f"threshold = {threshold:g}: expected a run whose tokens may leave early, but "
                "model.recursion.halting.kind is fixed. Leave it out; depth sets the steps of all "
                "tokens."
            )
        is_right = 0 < threshold <= 1 if halting.kind == "gate" else threshold >= 0
        if not is_right:
            wanted = (
                "a probability above 0 and up to 1" if halting.kind == "gate" else "0 nats or more"
            )
            raise LabError(f"threshold = {threshold:g}: expected {wanted} ({halting.kind}).")
    return Loops(depth, may_exit=True, exit_threshold=threshold)
