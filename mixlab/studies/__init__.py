"""Studies: arms of a recipe with what is held equal, seeds and tuning, run to a report.

Light modules (`study_file`, `rounds`, `results`, `progress`, `watch`, `job_store`, `lease`,
`driver`) need no torch; `design`, `study` and the jobs do.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixlab.studies.requests import Request, run_requests
    from mixlab.studies.runner import RunnerConfig
    from mixlab.studies.study_file import StudyFile, load_study

__all__ = ["Request", "RunnerConfig", "StudyFile", "load_study", "run_requests"]

_HOME = {"Request": "requests", "RunnerConfig": "runner", "run_requests": "requests"}


def __getattr__(name: str) -> Any:
    """Load what is asked for only then: the command line starts quickly."""
    if name not in __all__:
        raise AttributeError(f"module 'mixlab.studies' has no attribute {name!r}")
    return getattr(import_module(f"mixlab.studies.{_HOME.get(name, 'study_file')}"), name)
