"""write_report: the page and figures of a run folder, or one page of several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from midblock.base import MidblockError, replace_atomically, user_path, write_json
from midblock.base.files import write_failure
from midblock.metrics.correlation import write_correlations
from midblock.report.figure_files import figures_of, write_joint_figures
from midblock.report.figures.paper import write_figures
from midblock.report.gather import distinct, read_joint, read_one
from midblock.report.joint_page import joint_page, single_page
from midblock.report.read.joint import Joint
from midblock.report.read.reading import Run
from midblock.report.verbs import PAGES
from midblock.runs.lenient import read_json
from midblock.runs.lock import held, occupied

PATIENCE = 10.0  # seconds: another process may be drawing the same page
MARK = "joint.json"  # tells a folder that a joint page was written to


def write_report(*folders: Path | str, output_dir: Path | str | None = None) -> Path:
    """Write the page (`report.html`) and figures (`figures/*.png|pdf`) of one run, or a joint page of several.

    An analysis and a joint page also get `correlations.csv`, a joint page's folder all rows joined (`layers.parquet`,
    `layers.csv`) and `joint.json`, which names the runs.

    Args:
        folders: run folders; one given twice counts once.
        output_dir: where to write; the run's own folder for one, `report` beside the first for several.

    Returns:
        The path of the page.

    Raises:
        MidblockError: no folder, one that is no run, runs of models of different depth, or a place that cannot be
            written or holds other files.

    Example:
        >>> from midblock import merge, write_report
        >>> _ = merge(base, tuned, "0,0.5,1", output_dir="half"), merge(base, tuned, "1,0.5,0", output_dir="other")
        >>> write_report("half").name
        'report.html'
        >>> write_report("half", "other", output_dir="both").parent.name
        'both'
    """
    found = distinct(folders)
    target = user_path(output_dir) if output_dir else None
    if len(found) == 1:
        return _write_one(read_one(found[0]), target or found[0])
    return _write_joint(read_joint(found), target or found[0].resolve().parent / "report")


def page_of(run: Run, still: Path | None = None) -> str:
    """The whole page as text; `still` is a picture for readers without JavaScript."""
    own = PAGES[run.verb].page
    if isinstance(run, Joint):
        return joint_page(run, still) if len(run.runs) > 1 else single_page(run, still)
    return own(run, still) if own is not None else single_page(Joint.of([run]), still)


def _write_one(run: Run, folder: Path) -> Path:
    makers, first = figures_of(run)
    with held(folder, patience=PATIENCE):
        if PAGES[run.verb].correlated and run.correlations and len(run.correlations.frame):
            write_correlations(run.correlations, folder / "correlations.csv")
        return _write_page(run, folder, write_figures(run, folder / "figures", makers).get(first))


def _write_joint(run: Joint, folder: Path) -> Path:
    _check_place(folder)
    with held(folder, patience=PATIENCE):
        return _fill_joint(run, folder)


def _fill_joint(run: Joint, folder: Path) -> Path:
    write_json(folder / MARK, {"verb": "report", "runs": [str(each.folder) for each in run.runs]})
    written = write_joint_figures(run, folder / "figures")
    run.table.write(folder)
    if run.correlations:
        write_correlations(run.correlations, folder / "correlations.csv")
    return _write_page(run, folder, next(iter(written.values()), None))


def _check_place(folder: Path) -> None:
    """Refuse a folder whose files are not those of an earlier joint page.

    Raises:
        MidblockError: a file, a run folder, or a folder with other things in it.
    """
    other = "choose another --output-dir for the joint page"
    try:
        if folder.exists() and not folder.is_dir():
            raise MidblockError(f"{folder} is a file", hint="--output-dir wants a folder")
        used = occupied(folder)
    except OSError as error:
        raise write_failure(folder, error) from error
    if (folder / "run.json").exists():
        raise MidblockError(f"{folder} is a run folder", hint=other)
    mark: dict[str, Any] = read_json(folder / MARK, {})
    if used and mark.get("verb") != "report":
        raise MidblockError(f"{folder} holds files that are not those of a joint page", hint=other)


def _write_page(run: Run, folder: Path, still: Path | None) -> Path:
    page = folder / "report.html"
    with replace_atomically(page) as temporary:
        # a name in the file system may hold bytes that are no text
        temporary.write_text(page_of(run, still), encoding="utf-8", errors="backslashreplace")
    return page
