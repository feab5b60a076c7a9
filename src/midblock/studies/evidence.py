"""Which blocks to tune, from finished runs: what the rule of `auto:RUN` chooses, and whether other runs agree.

The rule takes the shortest run of neighbouring blocks that holds half of the change inside blocks. A swap points at
the segment that lowers the base's NLL most, a probe at the block where the tuned model's answers emerge, steering at
the block where the direction beats a random one by the widest margin, a flow at the block with the largest gradient.
Numbers and verdicts only; how they are worded and drawn is the business of whoever shows them. Described in
docs/causes/report.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from midblock.base import Estimate
from midblock.runs.finished import BASE, Finished
from midblock.runs.lenient import as_number, mapping
from midblock.studies.swapped import SEPARATE, Swapped, swaps_of
from midblock.tuning.place.auto import window_of

Span = tuple[int, int]  # first and last block


@dataclass(frozen=True)
class Finding:
    """Where one run points for one tuned model.

    Attributes:
        verb: of the run.
        about: the model that it was measured on.
        span: the blocks.
        intervenes: it changed the model; a run that only reads a model or its gradients is weaker evidence.
        clear: it points there and not elsewhere as well; an unclear finding counts neither for nor against.
        amount: what it rests on, in nats.
        in_base: the block where the base shows the same.
    """

    verb: str
    about: str
    span: Span
    intervenes: bool = False
    clear: bool = True
    amount: Estimate | None = None
    in_base: int | None = None


@dataclass(frozen=True)
class Suggestion:
    """The blocks suggested for one tuned model, and where every other run points.

    Attributes:
        run: the analysis it is made from.
        window: the blocks that the rule chooses.
        first_of_run: `--layers auto:RUN` gives this plan (the rule takes the first tuned model of a run).
        findings: of the other runs, in their order.
    """

    model: str
    run: Finished
    window: Span
    first_of_run: bool
    findings: tuple[Finding, ...]

    def inside(self, finding: Finding) -> int:
        """How many blocks of a finding lie in the window."""
        return max(0, min(finding.span[1], self.window[1]) - max(finding.span[0], self.window[0]) + 1)

    def agrees(self, finding: Finding) -> bool | None:
        """Whether at least half of a finding's blocks lie in the window; None where it is not clear."""
        return 2 * self.inside(finding) >= width(finding.span) if finding.clear else None

    @property
    def counted(self) -> tuple[bool, ...]:
        """For each clear finding, whether it agrees."""
        verdicts = map(self.agrees, self.findings)
        return tuple(verdict for verdict in verdicts if verdict is not None)

    @property
    def rival(self) -> Span | None:
        """Blocks outside the window that did most when put in: worth a tuning run of their own."""
        against = (each.span for each in self.findings if each.intervenes and self.agrees(each) is False)
        return next(against, None)


def suggestions(runs: Sequence[Finished]) -> list[Suggestion]:
    """A suggestion for each tuned model of each run that tells change by block as the rule reads it."""
    found = []
    for run in runs:
        for place, model in enumerate(run.tuned if run.verb == RULED else []):
            window = window_of(run.table, model)
            if window is not None:
                found.append(Suggestion(model, run, window, place == 0, tuple(findings(runs, model))))
    return found


def findings(runs: Sequence[Finished], model: str) -> list[Finding]:
    """Where the runs point for one tuned model, one finding a run at most."""
    found = (WITNESSES[run.verb](run, model) for run in runs if run.verb in WITNESSES)
    return [each for each in found if each is not None]


def width(span: Span) -> int:
    """Number of blocks."""
    return span[1] - span[0] + 1


def best_swap(run: Finished, model: str) -> Finding | None:
    """The segment whose tuned blocks bring the base's NLL down most, with the base's head where that was measured.

    Not clear where the best of so many segments might as well do nothing.
    """
    swaps = swaps_of(run)
    if swaps is None or run.summary.get("tuned") != model or swaps.mode not in SEPARATE:
        return None
    helping = [cell for cell in swaps.cells if cell.host == BASE and cell.first >= 0 and _change(cell).value < 0]
    helping = [cell for cell in helping if cell.head == "base_head"] or helping
    if not helping:
        return None
    best = min(helping, key=lambda cell: _change(cell).value)
    amount, alike = best.levels["nll"].of_all, [cell for cell in swaps.cells if cell.head == best.head]
    if not math.isfinite(amount.high):  # of a run that was made before it was told
        amount = _change(best).best_of(len([cell for cell in alike if cell.host == BASE]))
    return Finding(run.verb, model, (best.first, best.last), intervenes=True, clear=amount.high < 0, amount=amount)


def _change(cell: Swapped) -> Estimate:
    return cell.change("nll")


def emergence(run: Finished, model: str) -> Finding | None:
    """The block where the tuned model's answers emerge; not clear where the base's emerge at the same depth."""
    tuned, base = (emergence_of(run.summary_of(name)) for name in (model, BASE))
    block, before = tuned.get("layer"), base.get("layer")
    if type(block) is not int:
        return None
    in_base = before if type(before) is int else None
    return Finding(run.verb, model, (block, block), clear=_apart(tuned, base), in_base=in_base)


def emergence_of(entry: Mapping[str, Any], measure: str = "accuracy") -> Mapping[str, Any]:
    """What a probe's summary says of the depth at which one model reaches half of its final `measure`."""
    return mapping(mapping(entry, "emergence"), measure)


def _apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two intervals do not overlap; False where one is not known."""
    below = as_number(one.get("high")) < as_number(other.get("low"))
    above = as_number(one.get("low")) > as_number(other.get("high"))
    return below or above


def best_push(run: Finished, model: str) -> Finding | None:
    """The block where the direction does more than a random one of its norm by the widest margin.

    Not clear where the best of so many blocks might as well do nothing.
    """
    curve = run.table.curve("steer_nll_change", model)
    curve = curve[np.isfinite(curve.value)]
    random = run.table.curve("steer_nll_change.random", model).drop_duplicates("layer").set_index("layer").value
    gain = curve.value.to_numpy(float) - random.reindex(curve.layer).fillna(0).to_numpy(float)
    if not len(gain) or gain.min() >= 0:
        return None
    best = curve.iloc[int(np.argmin(gain))]
    block, most = int(best.layer), float(gain.min())
    off = most - float(best.value)
    amount = Estimate(most, float(best.low) + off, float(best.high) + off, int(best.n)).best_of(len(gain))
    return Finding(run.verb, model, (block, block), clear=amount.high < 0, amount=amount)


def hardest_pull(run: Finished, model: str) -> Finding | None:
    """The block where the gradient is largest, whatever was tuned there: it is about the base, not about one model."""
    block = mapping(run.summary, "peak").get("gradient_norm")
    about = next(iter(run.tuned), BASE)
    return Finding(run.verb, about, (block, block)) if type(block) is int else None


RULED = "analyze"  # whose table the rule reads
WITNESSES: Mapping[str, Callable[[Finished, str], Finding | None]] = {
    "swap": best_swap,
    "probe": emergence,
    "steer": best_push,
    "flow": hardest_pull,
}
