"""Which blocks to tune: what the `auto:RUN` rule chooses for each tuned model, and which runs point there too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from midblock.report.depth_strip import StripRow
from midblock.report.facts import number
from midblock.report.joint_run import Joint, data_of
from midblock.report.probe_section import emergence_of, models_of
from midblock.report.reading import BASE, Run, mapping
from midblock.report.swap_section import Cell, swaps_of
from midblock.report.training_log import as_number
from midblock.report.tune_run import TuneRun
from midblock.tuning.auto import window_of


@dataclass(frozen=True)
class Suggestion:
    """The blocks suggested for one tuned model, and what every kind of run says about them.

    Attributes:
        run: the analysis it is made from.
        first_of_run: `--layers auto:RUN` gives this plan (the rule takes the first tuned model of a run).
        others: rows of what other runs point at, each with True where it lies in the suggested blocks, None where it
            points nowhere and so does not count.
    """

    model: str
    run: Run
    first: int
    last: int
    first_of_run: bool
    others: tuple[tuple[StripRow, bool | None], ...]

    @property
    def blocks(self) -> str:
        return span_text(self.first, self.last)

    @property
    def agreeing(self) -> str:
        """How many of the other views point into the suggested blocks, in words; "" where there is none."""
        counted = [inside for _, inside in self.others if inside is not None]
        inside, total = sum(counted), len(counted)
        if not total:
            return ""
        if total == 1:
            return "The one other view points there too." if inside else "The one other view points elsewhere."
        return f"{inside} of {total} other views point into these blocks."

    @property
    def rival(self) -> tuple[int, int] | None:
        """The blocks that a swap points at instead: it changes the model, so it is worth a tuning run of its own."""
        spans = [row.spans[0] for row, inside in self.others if row.label == "Swap" and inside is False]
        return spans[0] if spans else None

    @property
    def disagreeing(self) -> str:
        """That the swap points elsewhere, in words; "" where it does not."""
        if self.rival is None:
            return ""
        return f"Rule and swap disagree: swapped in, {span_text(*self.rival)} do most; tune both and compare."


def suggestions_of(run: Joint) -> list[Suggestion]:
    """A suggestion for each tuned model of each analysis that tells change by block."""
    found = []
    for member in run.runs:
        for place, model in enumerate(member.tuned if member.verb == "analyze" else []):
            window = window_of(member.table, model)
            if window is not None:
                others = tuple(_others(run, model, window))
                found.append(Suggestion(model, member, *window, place == 0, others))
    return found


def span_text(first: int, last: int) -> str:
    if last < 0:
        return "the embedding"
    return f"blocks {first}–{last}" if last > first else f"block {first}"


def _others(run: Joint, model: str, window: tuple[int, int]) -> Iterator[tuple[StripRow, bool | None]]:
    for member in run.runs:
        view = VIEWS.get(member.verb)
        found = view(member, run, model) if view else None
        if found is not None:
            row, pointed = found
            if pointed is None:
                yield row, None
                continue
            first, last = pointed
            common = max(0, min(last, window[1]) - max(first, window[0]) + 1)
            inside = 2 * common >= last - first + 1
            where = "inside" if common == last - first + 1 else f"{common} of {last - first + 1} blocks inside"
            said = f"{row.said}; {where if common else 'outside'}"
            yield StripRow(row.label, row.spans, said, row.look), inside


View = tuple[StripRow, tuple[int, int] | None]  # None where it points nowhere, which its words explain


def _swapped(member: Run, run: Joint, model: str) -> View | None:
    """The segment whose tuned blocks bring the base's NLL down most."""
    swaps = swaps_of(member)
    if swaps is None or member.summary.get("tuned") != model or swaps.mode not in ("segments", "each"):
        return None
    cells = [cell for cell in swaps.cells if cell.host == BASE and cell.first >= 0 and change_of(cell)[0] < 0]
    cells = [cell for cell in cells if cell.head == "base_head"] or cells
    if not cells:
        return None
    best = min(cells, key=lambda cell: change_of(cell)[0])
    change, low, high = change_of(best)
    interval = f" [{number(low)}, {number(high)}]" if math.isfinite(low) and math.isfinite(high) else ""
    doubt = ", not clear of zero" if interval and high >= 0 else ""
    said = (
        f"put into the base, {span_text(best.first, best.last)} lower its NLL most: {number(change)}{interval}{doubt}"
    )
    return StripRow("Swap", ((best.first, best.last),), said, _look(run, model)), (best.first, best.last)


def change_of(cell: Cell) -> tuple[float, float, float]:
    """What a swap changed in its host's NLL, with its interval; NaN where it is not known."""
    _, _, _, change, low, high = cell.measures.get("nll", (math.nan,) * 6)
    return change, low, high


def _probed(member: Run, run: Joint, model: str) -> View | None:
    """Where the tuned model's answers emerge."""
    found = {str(entry.get("name")): emergence_of(entry) for entry in models_of(Joint.of([member]))}
    block = mapping(found, model).get("layer")
    if type(block) is not int:
        return None
    before = mapping(found, BASE).get("layer")
    said = f"answers emerge at {span_text(block, block)}"
    said += f", in the base at {span_text(before, before)}" if type(before) is int else ""
    apart = _apart(mapping(found, model), mapping(found, BASE))
    said += "" if apart else "; not clearly elsewhere than in the base, so not counted"
    return StripRow("Early exit", ((block, block),), said, _look(run, model)), (block, block) if apart else None


def _apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two emergence intervals do not overlap; False where one is not known."""
    low, high, other_low, other_high = (as_number(found.get(key)) for found in (one, other) for key in ("low", "high"))
    return high < other_low or low > other_high


def _steered(member: Run, run: Joint, model: str) -> View | None:
    """The block where the direction does more than a random one by the widest margin."""
    curve = member.table.curve("steer_nll_change", model)
    curve = curve[np.isfinite(curve.value)]
    random = member.table.curve("steer_nll_change.random", model).drop_duplicates("layer").set_index("layer").value
    gain = curve.value.to_numpy(float) - random.reindex(curve.layer).fillna(0).to_numpy(float)
    if not len(gain) or gain.min() >= 0:
        return None
    block = int(curve.layer.iloc[int(np.argmin(gain))])
    said = f"one block's push does most at block {block}: {number(float(gain.min()))} nats against random"
    return StripRow("Steering", ((block, block),), said, _look(run, model)), (block, block)


def _flowed(member: Run, run: Joint, model: str) -> View | None:
    """Where the gradient is largest, whatever was tuned there."""
    block = mapping(member.summary, "peak").get("gradient_norm")
    if type(block) is not int:
        return None
    look = _look(run, next(iter(member.tuned), BASE))
    said = f"the loss pulls hardest on block {block}"
    return StripRow("Gradient flow", ((block, block),), said, look), (block, block)


def _look(run: Joint, model: str) -> str:
    hue = run.hue(model)
    return f"m{(hue - 1) % 6 + 1 if hue else 0}"


VIEWS: Mapping[str, Callable[[Run, Joint, str], View | None]] = {
    "swap": _swapped,
    "probe": _probed,
    "steer": _steered,
    "flow": _flowed,
}


def data_to_tune_on(run: Joint) -> str:
    """The data of a tuning run among the runs, else of the first run that names any."""
    named = [data_of(member) for member in sorted(run.runs, key=lambda member: not isinstance(member, TuneRun))]
    return next((reference for reference in named if reference), "DATA")
