"""Recommendation: which blocks to tune, why, how surely, and what it took to find out; one answer of three doors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from midblock.base import LayerPlan, MidblockError
from midblock.base.plural import blocks_named
from midblock.tuning.place.recommended import RECOMMENDED

FALLBACK = "0.2-0.8"
P1 = "arXiv 2604.11838"
UNSAID = f"The evidence does not say which blocks; as a fallback {P1}'s 20–80 % of the depth"
FILE = RECOMMENDED


@dataclass(frozen=True)
class Recommendation:
    """An answer.

    Attributes:
        plan: the blocks to tune, with a rank for each where a budget of ranks was given; P1's 20–80 % where the
            evidence says nothing. Of a repair, the blocks that keep at least half of their tuning.
        says: whether the evidence says anything.
        confidence: 0…1: how often resamples choose much the same blocks, at most half where nothing was exchanged to
            see what helps, less where other evidence points elsewhere; 0 where the evidence says nothing.
        reasons: in words, a sentence each.
        cost: what it took: `seconds`, and where something was trained `steps`, `share_of_full` (of 1,000 steps).
        scores: one number a block, higher where tuning is advised more; NaN where none was measured.
        door: "runs", "pilot" or "repair".
        alphas: of a repair, α of each block, as `midblock merge --alphas` takes them.
        evidence: every curve that was asked, as records.
        details: what else a door found.
    """

    plan: LayerPlan
    says: bool
    confidence: float
    reasons: tuple[str, ...]
    cost: Mapping[str, float]
    scores: tuple[float, ...]
    door: str
    alphas: tuple[float, ...] | None = None
    evidence: Sequence[Mapping[str, Any]] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def headline(self) -> str:
        """One sentence."""
        if not self.says:
            return f"{UNSAID}: {blocks_named(self.plan)}"
        what = "Keep the tuning of" if self.door == "repair" else "Tune"
        ranks = f", ranks {','.join(map(str, self.plan.ranks))}" if self.plan.ranks else ""
        return f"{what} {blocks_named(self.plan)} of {self.plan.total}{ranks} (confidence {self.confidence:.0%})"

    def as_record(self) -> dict[str, Any]:
        """What `recommendation.json` holds; `--layers auto:RUN` reads `total`, `blocks` and `ranks` of it."""
        return {
            "door": self.door,
            "says": self.says,
            "fallback": not self.says,
            "confidence": self.confidence,
            "total": self.plan.total,
            "blocks": list(self.plan.blocks),
            "layers": str(self.plan),
            "ranks": list(self.plan.ranks) if self.plan.ranks else None,
            "alphas": list(self.alphas) if self.alphas else None,
            "reasons": list(self.reasons),
            "cost": dict(self.cost),
            "scores": [score if math.isfinite(score) else None for score in self.scores],
            "evidence": list(self.evidence),
            **self.details,
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any], where: str) -> Recommendation:
        """Read back what `as_record` wrote.

        Args:
            where: what to call it in messages.

        Raises:
            MidblockError: something is missing in it, or is something else.
        """
        try:
            ranks, alphas = record["ranks"], record["alphas"]
            plan = LayerPlan(record["total"], tuple(record["blocks"]), tuple(ranks) if ranks else None)
            scores = tuple(math.nan if score is None else float(score) for score in record["scores"])
            known = set(cls.__dataclass_fields__) | {"fallback", "total", "blocks", "layers", "ranks"}
            return cls(
                plan=plan,
                says=bool(record["says"]),
                confidence=float(record["confidence"]),
                reasons=tuple(map(str, record["reasons"])),
                cost=dict(record["cost"]),
                scores=scores,
                door=str(record["door"]),
                alphas=tuple(map(float, alphas)) if alphas else None,
                evidence=list(record["evidence"]),
                details={name: value for name, value in record.items() if name not in known},
            )
        except (KeyError, TypeError, ValueError) as error:
            what = f"{where} is no recommendation ({type(error).__name__}: {error})"
            raise MidblockError(what, hint="--overwrite makes it anew") from error


def fallback(total: int) -> LayerPlan:
    """P1's 20–80 % of the depth."""
    return LayerPlan.parse(FALLBACK, total)
