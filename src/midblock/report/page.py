"""write_report: a run folder's page and figures, for every kind of run."""

from __future__ import annotations

from pathlib import Path

from midblock.base import replace_atomically
from midblock.report.analysis_page import analysis_page
from midblock.report.figures import FIGURES
from midblock.report.paper import write_figures
from midblock.report.reading import Run
from midblock.report.tune_figures import TUNE_FIGURES
from midblock.report.tune_page import tune_page
from midblock.report.tune_run import TuneRun, read_run


def write_report(folder: Path | str) -> Path:
    """Write `report.html` and `figures/*.png|pdf` into a run folder, from the results that stand there.

    Returns:
        The path of the page.

    Raises:
        MidblockError: when there is no such folder, an analysis holds no layer table, or it cannot be written.
    """
    folder = Path(folder)
    run = read_run(folder)
    if isinstance(run, TuneRun):
        still = write_figures(run, folder / "figures", TUNE_FIGURES).get("loss")
    else:
        still = write_figures(run, folder / "figures", FIGURES).get("change_by_depth")
    page = folder / "report.html"
    with replace_atomically(page) as temporary:
        temporary.write_text(page_of(run, still), encoding="utf-8")
    return page


def page_of(run: Run, still: Path | None = None) -> str:
    """The whole page as text; `still` is a picture for readers without JavaScript."""
    return tune_page(run, still) if isinstance(run, TuneRun) else analysis_page(run, still)
