"""What takes most of a tiny run's time and most tests do not look at: pictures, a timed rate.

Tests of a run's pictures and of the commands as a user meets them leave everything as it is.
"""

from importlib import import_module
from typing import Any

PICTURES: dict[str, Any] = {
    f"mixlab.jobs.finish.{name}": lambda run: None
    for name in (
        "write_training_curves",
        "write_experts_picture",
        "write_depth_picture",
        "write_refinement_pictures",
    )
}
RATE: dict[str, Any] = {"mixlab.jobs.planning.measure_matmul_flops": lambda *args: 1e11}
"""Functions by name, and what stands in for them."""


def spare() -> None:
    """Put the stand-ins into this process for good."""
    for name, stand_in in {**PICTURES, **RATE}.items():
        module, _, function = name.rpartition(".")
        setattr(import_module(module), function, stand_in)
