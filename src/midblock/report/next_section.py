"""What to do: the blocks to tune, what speaks for and against them, the commands to go on with."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from html import escape
from itertools import count

from midblock.report.page import palette
from midblock.report.page.chart import Section
from midblock.report.read.joint import Joint, data_of
from midblock.report.read.tuning import TuneRun
from midblock.report.sections.evidence_rows import span_text
from midblock.report.suggestion import agreeing, disagreeing, suggestion_strip
from midblock.report.verbs import PAGES
from midblock.runs.finished import BASE, Finished
from midblock.runs.lenient import entries_of
from midblock.studies.evidence import Suggestion

INTRO = (
    "The rule is provisional: the shortest run of neighbouring blocks that holds half of what tuning changed inside "
    "blocks. The rule itself has not been scored. In the one sweep that we ran (docs/results/study.md) no advice on "
    "depth beat tuning all blocks; the blocks where a short pilot changed most came out behind. These runs are "
    "evidence about the models and prompts they were made with, not proof; a sweep on your own data decides."
)
WITHOUT = "No analysis is among these runs, and the rule needs one."


def next_section(run: Joint, found: Sequence[Suggestion]) -> Section:
    """Suggestions and commands; commands alone where no analysis is among the runs."""
    body = "".join(_card(run, suggestion) for suggestion in found)
    return Section("next", "Blocks to tune", INTRO if found else WITHOUT, (), body=body + _commands(run, found))


def _card(run: Joint, found: Suggestion) -> str:
    dot = f'<span class="dot {palette.look(run.hue(found.model))}"></span>'
    title = f"{dot}{escape(found.model)}: {span_text(found.window)} suggested"
    words = [text for text in (disagreeing(found), agreeing(found)) if text]
    note = f"<p>{escape(' '.join(words))}</p>" if words else ""
    return f'<div class="tile card"><h3>{title}</h3>{suggestion_strip(run, found)}{note}</div>'


def _commands(run: Joint, found: Sequence[Suggestion]) -> str:
    lines = [line for suggestion in found for line in _for(run, suggestion)]
    missing = _missing(run)
    return "".join(
        f'<h3 class="then">{title}</h3><pre tabindex="0">{escape(chr(10).join(some))}</pre>'
        for title, some in (("Run next", lines), ("Not looked at yet", missing))
        if some
    )


def _for(run: Joint, found: Suggestion) -> list[str]:
    window = _plan(*found.window)
    chosen = [(f"auto:{found.run.folder}" if found.first_of_run else window, window)]
    if found.rival:
        chosen.append((_plan(*found.rival),) * 2)
    tune = ["midblock", "tune", found.run.base, "--data", data_to_tune_on(run)]
    tunes = [[*tune, "--layers", plan, "--output-dir", _free(run, f"tuned-{name}")] for plan, name in chosen]
    alphas = ",".join("1" if found.window[0] <= block <= found.window[1] else "0" for block in range(run.blocks))
    tuned = reference_of(found.run, found.model)
    merge = ["midblock", "merge", found.run.base, tuned, "--alphas", alphas]
    merge += ["--output-dir", _free(run, f"merged-{window}")]
    return [shlex.join(command) for command in (*tunes, merge)]


def _plan(first: int, last: int) -> str:
    """The blocks as `--layers` takes them."""
    return f"{first}-{last}" if last > first else str(first)


def _free(run: Joint, name: str) -> str:
    """A folder under `runs` that none of the runs on the page is called like."""
    taken = {member.folder.name for member in run.runs}
    numbered = (name if place == 1 else f"{name}-{place}" for place in count(1))
    return f"runs/{next(each for each in numbered if each not in taken)}"


def _missing(run: Joint) -> list[str]:
    """Commands of the measurements that are not among the runs."""
    there = {member.verb for member in run.runs}
    first = next((member for member in run.runs if tuned_reference(member)), run.runs[0])
    values = {"base": first.base, "tuned": tuned_reference(first) or "TUNED", "data": data_to_tune_on(run)}
    wanted = {verb: page.command for verb, page in PAGES.items() if page.command and verb not in there}
    return [
        shlex.join(["midblock", verb, *(word.format(**values) for word in command.split())])
        for verb, command in wanted.items()
    ]


def data_to_tune_on(run: Joint) -> str:
    """The data of a tuning run among the runs, else of the first run that names any."""
    named = [data_of(member) for member in sorted(run.runs, key=lambda member: not isinstance(member, TuneRun))]
    return next((reference for reference in named if reference), "DATA")


def tuned_reference(run: Finished) -> str:
    """The first tuned model of a run, as it was asked for; "" where none is recorded."""
    found = [entry for entry in entries_of(run.record, "models") if entry.get("role") != BASE]
    return str(found[0].get("reference") or "") if found else ""


def reference_of(run: Finished, model: str) -> str:
    """The tuned model as it was asked for, its name where that is not recorded."""
    tuned = [entry for entry in entries_of(run.record, "models") if entry.get("role") != BASE]
    entries = {str(entry.get("name")): entry for entry in tuned}
    entry = entries.get(model) or entries.get(model.split(" (")[0]) or {}
    return str(entry.get("reference") or model)
