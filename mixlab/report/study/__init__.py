"""The report of a study: one self-contained page, the same figures as JSON, and pictures.

material   what the study folder holds, read so that an unfinished study is told and not fatal
analysis   the statistics over it, through `mixlab.stats`
charts     what is drawn: lines, bands and points on axes, still in the units of the data
scene      the same as lines and texts in pixels; `svg` and `raster` write them
page       the HTML page around them
"""

import json
from pathlib import Path

from mixlab.core.json_files import to_plain, write_bytes_atomically


def write_study_report(folder: Path | str) -> Path:
    """Write report.html, report.json and plots/*.png of the study in `folder`; the page's path.

    A study in any state gets a report; the same results give the same bytes.

    Raises:
        RunError: there is no study in `folder`, or it cannot be written.
        MissingPackageError: the packages behind the statistics are absent.
    """
    from mixlab.report.study.analysis import analyse
    from mixlab.report.study.folder import read_study
    from mixlab.report.study.page import write_page
    from mixlab.report.study.pictures import write_pictures
    from mixlab.report.study.record import to_record
    from mixlab.report.study.view import View
    from mixlab.stats import require_stats

    require_stats("the report of a study")
    folder = Path(folder)
    view = View(analyse(read_study(folder), folder))
    write_pictures(view, folder / "plots")
    record = json.dumps(to_plain(to_record(view.analysis)), indent=1, allow_nan=False) + "\n"
    write_bytes_atomically(folder / "report.json", record.encode())
    return write_bytes_atomically(folder / "report.html", write_page(view).encode())
