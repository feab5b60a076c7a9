"""From curves to a recommendation: what helps decides, the rest speaks for it or against it.

Swaps first, for a change that is seen need not be one that counts; then own change, then gradients. The first that says
something gives the plan, but a swap of whole segments leaves it to a curve by block that points into its segments.
Others that say something agree where at least half of their blocks lie in the plan (as of `midblock.studies.evidence`);
where one does not, that is said and confidence falls by its share. What was only seen gives half at the most: random
changes of the same size have nearly the profile of a tuning's own change over depth (docs/results/where.md), so that
resamples which agree on a block say little about what was learnt there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from midblock.base import LayerPlan
from midblock.studies.evidence import Finding, Span, width
from midblock.studies.recommend.curve import Curve
from midblock.studies.recommend.judged import Judged, judge_all
from midblock.studies.recommend.ranks import with_ranks
from midblock.studies.recommend.recommendation import Recommendation, fallback

ORDER = ("swap", "analyze", "flow")
BARE = 0.5  # confidence in what could not be resampled
SEEN = 0.5  # confidence at most in what was seen alone
ONLY_SEEN = (
    "Nothing was exchanged to see whether these blocks help, and a change that is seen need not be one that counts: "
    f"confidence is at most {SEEN:.0%} (midblock swap says more)."
)


def combine(
    curves: Sequence[Curve],
    total: int,
    *,
    door: str,
    cost: Mapping[str, float],
    findings: Sequence[Finding] = (),
    rank_budget: int | None = None,
    details: Mapping[str, Any] | None = None,
) -> Recommendation:
    """Recommend blocks from curves.

    Args:
        total: L.
        findings: what runs point at that have no curve: an early exit, steering.
        rank_budget: sum of ranks over blocks; None for a plan without ranks.

    Raises:
        MidblockError: a rank budget too small, or ruptures is not installed.
    """
    judged = sorted(judge_all(curves), key=lambda each: ORDER.index(each.curve.verb))
    saying = [each for each in judged if each.says and each.window is not None]
    leading = _leading(saying)
    others = [_finding(each) for each in saying if each is not leading]
    witnesses = [*others, *findings]
    scores = tuple((leading or judged[0]).curve.by_block(total)) if judged else (float("nan"),) * total
    if leading is None or leading.window is None:
        plan, reasons, confidence = fallback(total), [_silence(each) for each in judged], 0.0
    else:
        plan = LayerPlan(total, tuple(range(leading.window[0], leading.window[1] + 1)))
        verdicts = [agrees(plan, each) for each in witnesses if each.clear]
        stable = BARE if leading.stability is None else leading.stability
        only_seen = not any(each.curve.intervenes for each in saying)
        stable = min(stable, SEEN) if only_seen else stable
        confidence = stable * (1 + sum(verdicts)) / (1 + len(verdicts))
        silent = (_silence(each) for each in judged if not each.says)
        reasons = [_leads(leading), *_said(plan, witnesses), *silent, *([ONLY_SEEN] if only_seen else [])]
    return Recommendation(
        plan=with_ranks(plan, scores, rank_budget),
        says=leading is not None,
        confidence=confidence,
        reasons=tuple(reasons or ["No curve by depth is among what was given."]),
        cost=cost,
        scores=scores,
        door=door,
        evidence=[each.as_record(total) for each in judged],
        details=details or {},
    )


def _leading(saying: Sequence[Judged]) -> Judged | None:
    """The first; one by block instead that points into the segments of a first that knows no blocks."""
    first = next(iter(saying), None)
    if first is None or all(begin == end for begin, end in first.curve.spans):
        return first
    plan = _plan_of(first)
    finer = (each for each in saying[1:] if agrees(plan, _finding(each)))
    return next(finer, first)


def _plan_of(found: Judged) -> LayerPlan:
    first, last = found.window or (0, -1)
    return LayerPlan(found.curve.spans[-1][1] + 1, tuple(range(first, last + 1)))


def _finding(found: Judged) -> Finding:
    return Finding(found.curve.verb, found.curve.about, found.window or (0, -1), found.curve.intervenes)


def agrees(plan: LayerPlan, finding: Finding) -> bool:
    """Whether at least half of a finding's blocks are in the plan."""
    inside = sum(finding.span[0] <= block <= finding.span[1] for block in plan.blocks)
    return 2 * inside >= width(finding.span)


def _leads(found: Judged) -> str:
    assert found.window is not None  # noqa: S101 - what says something says where
    sure = (
        "nothing tells how sure its values are"
        if found.stability is None
        else f"in {found.stability:.0%} of resamples ({found.curve.resampled}) much the same blocks do"
    )
    return f"{found.curve.title} of {found.curve.about} stands out in {in_words(found.window)}; {sure}."


def _silence(found: Judged) -> str:
    return f"{found.curve.title} of {found.curve.about} does not say where: {found.why_not}."


def _said(plan: LayerPlan, findings: Iterable[Finding]) -> list[str]:
    """What speaks for the plan, and what against."""
    said = []
    for each in findings:
        where = f"{NAMES[each.verb]} of {each.about} points at {in_words(each.span)}"
        if not each.clear:
            said.append(f"{where}, not clearly, so it counts neither way.")
        elif agrees(plan, each):
            said.append(f"{where}, too.")
        else:
            said.append(f"The evidence disagrees: {where[0].lower()}{where[1:]}; tune both and compare.")
    return said


def in_words(span: Span) -> str:
    """Blocks as a sentence names them."""
    return f"block {span[0]}" if span[0] == span[1] else f"blocks {span[0]}–{span[1]}"


NAMES = {
    "analyze": "Own change",
    "swap": "Swap gain",
    "flow": "The gradient norm",
    "probe": "The early exit",
    "steer": "Steering",
}
