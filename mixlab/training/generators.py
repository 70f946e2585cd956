"""States of random generators as tensors, for checkpoints."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mixlab.core.errors import CheckpointError
from mixlab.parallel import World

_CPU, _CUDA, _NAMED = "torch.cpu", "torch.cuda.", "named."
_GROUP = "generators"


def collect_generators(named: Mapping[str, torch.Generator] | None = None) -> dict[str, Tensor]:
    """The states of torch's default generators on the CPU and on the GPU in use, and of `named`."""
    states = {_CPU: torch.get_rng_state()}
    # Asking for CUDA states would start CUDA in a run that does without.
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states[f"{_CUDA}0"] = torch.cuda.get_rng_state()
    for name, generator in (named or {}).items():
        states[f"{_NAMED}{name}"] = generator.get_state()
    return states


def restore_generators(
    states: Mapping[str, Tensor], named: Mapping[str, torch.Generator] | None = None
) -> list[str]:
    """Put back what `collect_generators` gave; returns one warning per state without a place.

    Only states of CUDA devices that are not here can be without a place: such a run goes on, but
    its dropout differs from that of the uninterrupted one.

    Raises:
        CheckpointError: a state is missing, unknown or not one of a generator.
    """
    named = named or {}
    expected = {_CPU, *(f"{_NAMED}{name}" for name in named)}
    found = {key for key in states if not key.startswith(_CUDA)}
    for key in sorted(expected ^ found):
        what = "is missing" if key in expected else "is unknown"
        raise CheckpointError(f"the generator {key!r} in the checkpoint {what}.")
    n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    warnings = []
    for key, state in states.items():
        try:
            if key == _CPU:
                torch.set_rng_state(state)
            elif key.startswith(_NAMED):
                named[key.removeprefix(_NAMED)].set_state(state)
            elif key == f"{_CUDA}0" and n_devices:
                torch.cuda.set_rng_state(state)
            elif int(key.removeprefix(_CUDA)) < n_devices:  # of a run that saved all devices
                torch.cuda.set_rng_state(state, int(key.removeprefix(_CUDA)))
            else:
                warnings.append(f"{key}: no such device here, so its random state is not restored.")
        except (RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"the generator {key!r} in the checkpoint: {error}.") from None
    return warnings


# --- several ranks ------------------------------------------------------------------------------


def seed_rank(seed: int, world: World, step: int = 0) -> None:
    """Start the default generators: every rank has draws of its own, the first those of one process
    alone."""
    torch.manual_seed(seed if world.is_first else (seed << 24) + (step << 44) + world.rank)


def collect_of_ranks(world: World) -> dict[str, dict[str, Tensor]]:
    """Groups for a checkpoint: `generators` of the first rank, `generators_1` of the second, ...

    Every rank must call it.
    """
    groups: dict[str, dict[str, Tensor]] = {_group(rank): {} for rank in range(world.size)}
    for key, state in collect_generators().items():
        states = world.all_rows(state[None])
        for rank in range(world.size):
            groups[_group(rank)][key] = states[rank]
    return groups


def restore_of_rank(
    groups: Mapping[str, Mapping[str, Tensor]], world: World, *, seed: int, step: int
) -> None:
    """Put back this rank's states; a rank that the run did not have before begins with its seed."""
    own = groups.get(_group(world.rank))
    if own is None and not world.is_first:
        seed_rank(seed, world, step)
    else:
        restore_generators(own or {})


def _group(rank: int) -> str:
    return f"{_GROUP}_{rank}" if rank else _GROUP
