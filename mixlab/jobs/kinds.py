"""What the kinds of run do differently, in one table; everything else is shared."""

from collections.abc import Callable
from typing import Any, NamedTuple

from mixlab.data.prepare import PreparedData
from mixlab.jobs.check import check_before_training
from mixlab.jobs.config import AnyRunConfig
from mixlab.jobs.device import Hardware
from mixlab.jobs.finish import conclude
from mixlab.jobs.refine.checks import check_refiner_before_training
from mixlab.jobs.refine.finish import conclude_refinement
from mixlab.jobs.refine.session import (
    RefineSession,
    open_refine_session,
    prepare_puzzles,
    require_refiner_memory,
    seconds_per_segment,
)
from mixlab.jobs.screen import Screen
from mixlab.jobs.session import (
    Session,
    open_session,
    prepare_data,
    require_memory,
    seconds_per_step,
)
from mixlab.nn.budget import model_budget
from mixlab.nn.recursion.refiner import refiner_budget
from mixlab.tasks.prepare import PreparedTask

AnyData = PreparedData | PreparedTask
AnySession = Session | RefineSession


class Kind(NamedTuple):
    """The jobs of one kind of run."""

    prepare_data: Callable[[Any, Screen], AnyData]
    require_memory: Callable[[Any, Hardware], None]
    flops_per_token: Callable[[Any], float]
    seconds_per_step: Callable[[Any, Any, Hardware], float]
    open_session: Callable[[Any, Any, Hardware], AnySession]
    check_before_training: Callable[..., None]
    conclude: Callable[..., dict[str, Any]]


KINDS = {
    "language_model": Kind(
        prepare_data=prepare_data,
        require_memory=require_memory,
        flops_per_token=lambda c: model_budget(c.model, c.data.seq_len).train_flops_per_token,
        seconds_per_step=seconds_per_step,
        open_session=open_session,
        check_before_training=check_before_training,
        conclude=conclude,
    ),
    "refine": Kind(
        prepare_data=prepare_puzzles,
        require_memory=require_refiner_memory,
        flops_per_token=lambda c: refiner_budget(c.model).train_flops_per_token,
        seconds_per_step=seconds_per_segment,
        open_session=open_refine_session,
        check_before_training=check_refiner_before_training,
        conclude=conclude_refinement,
    ),
}


def kind_of(config: AnyRunConfig) -> Kind:
    """The jobs of this config's kind."""
    return KINDS[config.kind]
