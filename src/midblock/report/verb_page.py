"""VerbPage: what the runs of one verb bring to a page. Step: one of the steps of the story that a page tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midblock.report.page.chart import Chart, Section
from midblock.report.page.depth_strip import StripRow
from midblock.report.page.facts import Fact
from midblock.report.page.provenance import provenance_of
from midblock.report.read.reading import PLAIN, Run, Traits
from midblock.studies.evidence import Finding

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Makers = Mapping[str, Callable[[Any], "Figure | None"]]


@dataclass(frozen=True)
class Step:
    """One of the three steps from what changed to what to do.

    Attributes:
        missing: what stands there when no run tells about it.
    """

    id: str
    title: str
    missing: str


@dataclass(frozen=True)
class VerbPage:
    """What the runs of one verb bring to a page. The functions are given the runs of the verb, joined.

    Attributes:
        sections: headings and figures, none where there are no numbers.
        step: id of the step of the story that they tell about.
        figures: for papers, by the names of their files.
        told: rank among the verbs of its step, of which the lowest is quoted first.
        traits: how its runs stand beside others.
        read: reads one folder, also where it holds no table yet; None: as all verbs' folders are read.
        page: the page of a single run, given a picture for readers without scripts; None: lead, sections, provenance.
        still: the figure that is this picture; the first one where none is named.
        provenance: how one run was made.
        opening: the figure that a step begins with on a page of several runs, followed by `facts`.
        facts: key numbers under the opening.
        data: what scripts draw from besides the table.
        shared: curves of several models share a figure, so that the reader may switch models off.
        correlated: the page of a single run tells how its curves go together.
        paper: figures for papers on a page of several runs: "joined", one for "each" run, or "none".
        command: how to make such a run of {base}, {tuned} and {data} where none is on the page; "" offers none.
        evidence: words and draws where a run points; the string is the class of the model's colour.
    """

    sections: Callable[[Any], list[Section]]
    step: str
    figures: Makers = field(default_factory=dict)
    told: int = 0
    traits: Traits = PLAIN
    read: Callable[[Path], Run] | None = None
    page: Callable[[Any, Path | None], str] | None = None
    still: str = ""
    provenance: Callable[[Any], str] = provenance_of
    opening: Callable[[Any], Chart | None] | None = None
    facts: Callable[[Any], list[Fact]] | None = None
    data: Callable[[Any], Mapping[str, Any]] | None = None
    shared: bool = False
    correlated: bool = False
    paper: str = "joined"
    command: str = ""
    evidence: Callable[[Finding, str], StripRow] | None = None
