"""The pictures of a study as files, for papers and slides."""

from pathlib import Path

from mixlab.core.json_files import write_bytes_atomically
from mixlab.report.study.raster import write_png
from mixlab.report.study.view import View

_COLUMNS = {"differences": 1, "curves": 3, "seeds": 5, "rates": 5, "fronts": 3}
_WITH_KEY = ("curves", "fronts")


def write_pictures(view: View, folder: Path) -> list[Path]:
    """Write FOLDER/NAME.png for every picture that has something in it."""
    written = []
    key = [(arm.name, view.looks[arm.name]) for arm in view.study.arms]
    for name, scenes in view.scenes.items():
        if scenes:
            heading = f"{view.study.name}: {view.metric.axis}"
            picture = write_png(scenes, heading, key if name in _WITH_KEY else [], _COLUMNS[name])
            written.append(write_bytes_atomically(folder / f"{name}.png", picture))
    return written
