"""mixlab: a research lab for efficient small language models.

    import mixlab

    config = mixlab.recipe("quickstart", train={"length": "100 steps"})
    run = mixlab.train(config)
    run.metrics["loss_nats"]            # columns, ready for pandas.DataFrame(run.metrics)
    run.generate("def ")

The same code runs behind the command line.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Run", "RunConfig", "compare", "open_run", "recipe", "train"]

if TYPE_CHECKING:
    from mixlab.jobs.api import Run, open_run, recipe, train
    from mixlab.jobs.config import RunConfig
    from mixlab.studies.comparison import compare


def __getattr__(name: str) -> Any:
    """Load PyTorch when something is used, not when mixlab is imported."""
    if name not in __all__:
        raise AttributeError(f"module 'mixlab' has no attribute {name!r}")
    from mixlab.jobs.process import tune_process

    tune_process()
    if name == "compare":
        from mixlab.studies import comparison

        return comparison.compare
    from mixlab.jobs import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
