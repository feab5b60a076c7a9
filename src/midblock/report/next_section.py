"""What to do: the blocks to tune, what speaks for and against them, the commands to go on with."""

from __future__ import annotations

import shlex
from html import escape
from itertools import count

from midblock.report.chart import Section
from midblock.report.depth_strip import StripRow, depth_strip
from midblock.report.joint_run import Joint, entries_of
from midblock.report.reading import BASE, Run
from midblock.report.suggestion import Suggestion, data_to_tune_on, suggestions_of

INTRO = (
    "The rule is provisional: the shortest run of neighbouring blocks that holds half of what tuning changed inside "
    "blocks. It has not been scored against sweeps of tuned depth yet. These runs are evidence about the models "
    "and prompts they were made with, not proof; a sweep on your own data decides."
)
WITHOUT = "No analysis is among these runs, and the rule needs one."


def next_section(run: Joint) -> Section:
    """Suggestions and commands; commands alone where no analysis is among the runs."""
    found = suggestions_of(run)
    body = "".join(_card(run, suggestion) for suggestion in found)
    return Section("next", "Blocks to tune", INTRO if found else WITHOUT, (), body=body + _commands(run, found))


def _card(run: Joint, found: Suggestion) -> str:
    look = f"m{(run.hue(found.model) - 1) % 6 + 1}"
    width = found.last - found.first + 1
    said = f"{found.blocks} ({width} of {run.blocks}) hold half of the change inside blocks"
    rows = [StripRow("Suggested", ((found.first, found.last),), said, look, strong=True)]
    rows += [row for row, _ in found.others]
    strip = depth_strip(run.blocks, rows, (found.first, found.last))
    title = f'<span class="dot {look}"></span>{escape(found.model)}: {found.blocks} suggested'
    words = [text for text in (found.disagreeing, found.agreeing) if text]
    note = f"<p>{escape(' '.join(words))}</p>" if words else ""
    return f'<div class="tile card"><h3>{title}</h3>{strip}{note}</div>'


def _commands(run: Joint, found: list[Suggestion]) -> str:
    lines = [line for suggestion in found for line in _for(run, suggestion)]
    missing = _missing(run)
    return "".join(
        f'<h3 class="then">{title}</h3><pre tabindex="0">{escape(chr(10).join(some))}</pre>'
        for title, some in (("Run next", lines), ("Not looked at yet", missing))
        if some
    )


def _for(run: Joint, found: Suggestion) -> list[str]:
    layers = f"auto:{found.run.folder}" if found.first_of_run else _plan(found.first, found.last)
    chosen = [(layers, _plan(found.first, found.last))]
    if found.rival:
        chosen.append((_plan(*found.rival),) * 2)
    tune = ["midblock", "tune", found.run.base, "--data", data_to_tune_on(run)]
    tunes = [[*tune, "--layers", plan, "--output-dir", _free(run, f"tuned-{name}")] for plan, name in chosen]
    alphas = ",".join("1" if found.first <= block <= found.last else "0" for block in range(run.blocks))
    tuned = reference_of(found.run, found.model)
    merge = ["midblock", "merge", found.run.base, tuned, "--alphas", alphas]
    merge += ["--output-dir", _free(run, f"merged-{_plan(found.first, found.last)}")]
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
    tuned, data = tuned_reference(first) or "TUNED", data_to_tune_on(run)
    return [
        shlex.join(["midblock", verb, first.base, *(["--from"] if verb == "steer" else []), tuned, "--data", data])
        for verb in ("analyze", "probe", "swap", "steer")
        if verb not in there
    ]


def tuned_reference(run: Run) -> str:
    """The first tuned model of a run, as it was asked for; "" where none is recorded."""
    found = [entry for entry in entries_of(run.record, "models") if entry.get("role") != BASE]
    return str(found[0].get("reference") or "") if found else ""


def reference_of(run: Run, model: str) -> str:
    """The tuned model as it was asked for, its name where that is not recorded."""
    entries = {str(entry.get("name")): entry for entry in entries_of(run.record, "models")}
    entry = entries.get(model) or entries.get(model.split(" (")[0]) or {}
    return str(entry.get("reference") or model)
