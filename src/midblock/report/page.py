"""write_report: the page and figures of a run folder, or one page of several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from midblock.base import MidblockError, replace_atomically
from midblock.metrics.correlation import write_correlations
from midblock.report.analysis_page import analysis_page
from midblock.report.joint_page import joint_page, verb_page
from midblock.report.joint_run import Joint, distinct, read_joint
from midblock.report.paper import write_figures
from midblock.report.reading import Run, read_json
from midblock.report.tune_page import tune_page
from midblock.report.tune_run import TuneRun, read_run
from midblock.report.verb_figures import figures_of, write_joint_figures

OWN_PAGE = ("analyze", "tune")  # verbs whose page is not made of sections that they share with others


def write_report(*folders: Path | str, output_dir: Path | str | None = None) -> Path:
    """Write the page (`report.html`) and figures (`figures/*.png|pdf`) of one run, or a joint page of several.

    A joint page's folder also gets all rows joined (`layers.parquet`, `layers.csv`) and `correlations.csv`.

    Args:
        folders: run folders; one given twice counts once.
        output_dir: where to write; the run's own folder for one, `report` beside the first for several.

    Returns:
        The path of the page.

    Raises:
        MidblockError: no folder, one that is no run, runs of models of different depth, or a place that cannot be
            written.
    """
    found = distinct(folders)
    if len(found) == 1:
        return _write_one(read_one(found[0]), Path(output_dir or found[0]))
    return _write_joint(read_joint(found), Path(output_dir or found[0].resolve().parent / "report"))


def read_one(folder: Path | str) -> Run:
    """Read a run for a page of its own, a `Joint` of one for the verbs that share their sections.

    Raises:
        MidblockError: as `write_report`.
    """
    record: dict[str, Any] = read_json(Path(folder) / "run.json", {})
    verb = record.get("verb") or "analyze"
    return read_run(folder) if verb in OWN_PAGE else read_joint([folder])


def page_of(run: Run, still: Path | None = None) -> str:
    """The whole page as text; `still` is a picture for readers without JavaScript."""
    if isinstance(run, Joint):
        return joint_page(run, still) if len(run.runs) > 1 else verb_page(run, still)
    return tune_page(run, still) if isinstance(run, TuneRun) else analysis_page(run, still)


def _write_one(run: Run, folder: Path) -> Path:
    makers, first = figures_of(run)
    return _write_page(run, folder, write_figures(run, folder / "figures", makers).get(first))


def _write_joint(run: Joint, folder: Path) -> Path:
    if folder.exists() and not folder.is_dir():
        raise MidblockError(f"{folder} is a file", hint="--output-dir wants a folder")
    if (folder / "run.json").exists():
        raise MidblockError(f"{folder} is a run folder", hint="choose another --output-dir for the joint page")
    written = write_joint_figures(run, folder / "figures")
    run.table.write(folder)
    if run.correlations:
        write_correlations(run.correlations, folder / "correlations.csv")
    return _write_page(run, folder, next(iter(written.values()), None))


def _write_page(run: Run, folder: Path, still: Path | None) -> Path:
    page = folder / "report.html"
    with replace_atomically(page) as temporary:
        temporary.write_text(page_of(run, still), encoding="utf-8")
    return page
