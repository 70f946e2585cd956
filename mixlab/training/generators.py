"""States of random generators as tensors, for checkpoints."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mixlab.core.errors import CheckpointError

_CPU, _CUDA, _NAMED = "torch.cpu", "torch.cuda.", "named."


def collect_generators(named: Mapping[str, torch.Generator] | None = None) -> dict[str, Tensor]:
    """The states of torch's default generators, of every CUDA device in use, and of `named`."""
    states = {_CPU: torch.get_rng_state()}
    # Asking for CUDA states would start CUDA in a run that does without.
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for i, state in enumerate(torch.cuda.get_rng_state_all()):
            states[f"{_CUDA}{i}"] = state
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
            elif int(key.removeprefix(_CUDA)) < n_devices:
                torch.cuda.set_rng_state(state, int(key.removeprefix(_CUDA)))
            else:
                warnings.append(f"{key}: no such device here, so its random state is not restored.")
        except (RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"the generator {key!r} in the checkpoint: {error}.") from None
    return warnings
