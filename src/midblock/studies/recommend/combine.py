"""From curves to a recommendation: what changed inside blocks decides, the rest speaks for it or against it.

Own change first, for it is about what tuning did and needs no answers; then what swapped blocks gain; then gradients.
The first that says something gives the plan. Others that say something agree where at least half of their blocks lie
in it (as of `midblock.studies.evidence`); where one does not, that is said and confidence falls by its share.
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

ORDER = ("analyze", "swap", "flow")
BARE = 0.5  # confidence in what could not be resampled


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
    leading = next(iter(saying), None)
    others = [Finding(each.curve.verb, each.curve.about, each.window, each.curve.intervenes)
              for each in saying[1:] if each.window is not None]  # fmt: skip
    witnesses = [*others, *findings]
    scores = tuple((leading or judged[0]).curve.by_block(total)) if judged else (float("nan"),) * total
    if leading is None or leading.window is None:
        plan, reasons, confidence = fallback(total), [_silence(each) for each in judged], 0.0
    else:
        plan = LayerPlan(total, tuple(range(leading.window[0], leading.window[1] + 1)))
        verdicts = [agrees(plan, each) for each in witnesses if each.clear]
        stable = BARE if leading.stability is None else leading.stability
        confidence = stable * (1 + sum(verdicts)) / (1 + len(verdicts))
        silent = (_silence(each) for each in judged if not each.says)
        reasons = [_leads(leading), *_said(plan, witnesses), *silent]
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
