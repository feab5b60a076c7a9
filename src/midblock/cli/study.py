"""`midblock study`: parse, tell the plan and its cost, call `midblock.study`, draw the page, print the arms."""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from midblock.base import MidblockError
from midblock.base.quoting import printable
from midblock.cli.fitting import print_whole
from midblock.runs.where import Where
from midblock.studies.study.again import finished
from midblock.studies.study.settings import StudySettings

if TYPE_CHECKING:
    from midblock.studies.study.cost import Cost
    from midblock.studies.study.study import Planned

Flat = Parameter(name="*")


def study(
    file: Path,
    *,
    settings: Annotated[StudySettings | None, Flat] = None,
    where: Annotated[Where | None, Flat] = None,
    json: bool = False,
) -> None:
    """Tune, validate, test and compare a grid of plans, each trial in a process of its own.

    Args:
        file: the study: base, data, what varies, how it is evaluated. docs/study.md describes it.
        json: print the summary as JSON on standard output, for programs.
    """
    settings, where = settings or StudySettings(), where or Where()
    folder = where.folder or Path("runs") / f"study-{file.stem}"
    if where.resume and not settings.dry_run:
        also = {"halving": settings.halving, "advice": settings.score_recommendation}
        if known := finished(folder, file, **also):
            _again(folder, known, as_json=json)
            return
    _carry_out(file, settings, where, as_json=json)


def _carry_out(file: Path, settings: StudySettings, where: Where, *, as_json: bool) -> None:
    from midblock.cli.life import carry_out, tell
    from midblock.report import write_report
    from midblock.studies.study.study import TrialsFailedError
    from midblock.studies.study.study import study as run_study

    act = partial(run_study, file, announce=print_plan, **asdict(settings))
    try:
        filled, found = carry_out("study", [file.stem], where, act)
    except TrialsFailedError as error:
        write_report(error.folder)
        raise
    if found is not None:
        tell(filled, as_json=as_json, show=lambda console: show_arms(found.summary, console))


def _again(folder: Path, summary: Mapping[str, Any], *, as_json: bool) -> None:
    """Tell a study that was finished before, with the page that it has."""
    page = folder / "report.html"
    if as_json:
        print(json_format.dumps({**summary, "folder": str(folder), "report": str(page)}, indent=2))
        return
    console = Console(file=sys.stdout, markup=False, highlight=False)
    try:
        show_arms(summary, console)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        what = f"the files in {folder} are not what this command leaves ({type(error).__name__}: {error})"
        raise MidblockError(what, hint="--overwrite makes the study anew") from error
    console.print(printable(summary["headline"]), style="bold", soft_wrap=True)
    console.print(printable(f"Report: {page}"), soft_wrap=True)


def print_plan(planned: Planned, cost: Cost) -> None:
    """Show what is about to be done, and what it will cost."""
    for line in (*planned.described(), f"Cost: {cost}"):
        print(printable(line), file=sys.stderr)


def show_arms(summary: Mapping[str, Any], console: Console) -> None:
    """Print the arms of every task: score, how likely each is the best, and against the reference."""
    for task in summary["tasks"]:
        title = Text(printable(f"{task['task']}: {task['metric']}"))
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
        against = {each["arm"]: each for each in task["comparisons"]}
        reference = printable(summary["reference"])
        for column in ("arm", "score", "95 %", "P(best)", "parameters", f"against {reference}", "p (Holm)"):
            words = column == "arm" or column.startswith("against")
            table.add_column(column, justify="left" if column == "arm" else "right", no_wrap=not words)
        base = task["base"]
        if base is not None:
            table.add_row("base", _number(base["value"]), _ends(base))
        for arm in task["arms"]:
            other = against.get(arm["arm"])
            beside = ("", "") if other is None else (_difference(other), f"{other['p_holm']:.3g}")
            chance, count = f"{arm['probability_best']:.2f}", f"{arm['parameters'] or 0:,}"
            table.add_row(Text(printable(arm["arm"])), _number(arm["value"]), _ends(arm), chance, count, *beside)
        print_whole(table, console)
    if advice := summary.get("advice"):
        _show_advice(advice, console)


def _show_advice(advice: Mapping[str, Any], console: Console) -> None:
    """Print what following each adviser would have cost."""
    if not advice["advisers"]:
        console.print(printable(f"Advice was not scored: {advice['why_not']}"), soft_wrap=True)
        return
    title = Text(printable(f"advice, on {advice['task']}: {advice['metric']}"))
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    for column in ("adviser", "picks", "regret", "95 %", f"rank correlation over {len(advice['ranked'])}", "95 %"):
        words = column in ("adviser", "picks")
        table.add_column(column, justify="left" if words else "right", no_wrap=not words)
    for each in advice["advisers"]:
        ends = [f"{_number(each[f'{name}_low'])}–{_number(each[f'{name}_high'])}" for name in ("regret", "correlation")]
        picked = Text(printable(each["picked"] or "–"))
        name = Text(printable(each["adviser"]))
        table.add_row(name, picked, _number(each["regret"]), ends[0], _number(each["correlation"]), ends[1])
    print_whole(table, console)


def _difference(compared: Mapping[str, Any]) -> str:
    return f"{compared['difference']:+.3f} [{compared['low']:+.3f}, {compared['high']:+.3f}]"


def _ends(told: Mapping[str, Any]) -> str:
    return f"{_number(told['low'])}–{_number(told['high'])}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
