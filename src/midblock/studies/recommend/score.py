"""Advice held against a sweep: what following it would have cost, and whether it ranks the depth as the sweep does.

Regret is the sweep's best mean score minus the mean score of the plan that the advice picks, in the score's unit and
never below 0; the rank correlation is Spearman's, over plans, of what the adviser gives a plan's blocks on average and
what the sweep found. Both are resampled over seeds and, where items are there, over items, drawn alike for all plans.
In each draw the best plan is looked for anew, so the regret's interval is pulled up by noise: with few seeds the best
of many plans is partly luck. Described in docs/recommend.md, "Advice is scored".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy.stats import rankdata

from midblock.base import Estimate, MidblockError, generator
from midblock.base.bootstrap import RESAMPLES, quantiles

NAN = float("nan")
Scores = Float64[np.ndarray, "plans"]


@dataclass(frozen=True)
class Advice:
    """What an adviser says before the sweep is looked at.

    Attributes:
        name: the adviser's.
        scores: one number a block, bottom first, higher where tuning is advised more; () where it gives none.
        blocks: the blocks it would tune; () where it gives scores alone: then the plan with the highest mean score.
    """

    name: str
    scores: tuple[float, ...] = ()
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True)
class AdviceScore:
    """How one adviser fared.

    Attributes:
        name: the adviser's.
        picked: the plan of the sweep that its advice comes to; "" where it comes to none.
        regret: the best plan's score minus the picked one's, ≥ 0; `n` counts the seeds.
        correlation: Spearman's over plans, NaN where the adviser calls all of them equal; `n` counts the plans.
    """

    name: str
    picked: str
    regret: Estimate
    correlation: Estimate

    def as_record(self) -> dict[str, Any]:
        """For JSON and tables."""
        numbers = {"regret": self.regret.as_record(), "correlation": self.correlation.as_record()}
        flat = {f"{name}{'' if part == 'value' else '_' + part}": value
                for name, record in numbers.items() for part, value in record.items()}  # fmt: skip
        return {"adviser": self.name, "picked": self.picked, **flat, "seeds": self.regret.n}


def score_advice(
    rows: Iterable[Mapping[str, Any]],
    plans: Mapping[str, Sequence[int]],
    advice: Iterable[Advice],
    *,
    ranked: Sequence[str] | None = None,
    higher_is_better: bool = True,
    seed: int = 0,
) -> list[AdviceScore]:
    """Score advisers on one task and metric of a sweep.

    Args:
        rows: of the sweep: `plan`, `seed`, `score`, and where scores of items are there `item`, one row an item.
        plans: the blocks of each plan, by its name in `rows`.
        advice: the advisers.
        ranked: the plans that the rank correlation is over, such as the one-segment ones; all when left out.
        higher_is_better: False for losses.
        seed: decides the resampling.

    Returns:
        In the order of `advice`.

    Raises:
        MidblockError: no row, a plan without blocks, a row twice, or an adviser for a model of another depth.

    Example:
        >>> rows = [{"plan": p, "seed": 0, "score": s} for p, s in (("10", 0.2), ("01", 0.5))]
        >>> score_advice(rows, {"10": [0, 1], "01": [2, 3]}, [Advice("low", (2, 1, 0, 0))])[0].regret.value
        0.3
    """
    sweep = Sweep.of(rows, plans, higher_is_better=higher_is_better)
    places = [sweep.names.index(name) for name in ranked or sweep.names if name in sweep.names]
    draws = sweep.draws(seed)
    return [_scored(each, sweep, plans, places, draws) for each in advice]


@dataclass(frozen=True)
class Sweep:
    """What a sweep found, as an array.

    Attributes:
        names: of the plans.
        values: the score of each plan, seed and item, higher is better; NaN where a trial failed.
    """

    names: tuple[str, ...]
    values: Float64[np.ndarray, "plans seeds items"]

    @classmethod
    def of(
        cls, rows: Iterable[Mapping[str, Any]], plans: Mapping[str, Sequence[int]], *, higher_is_better: bool
    ) -> Sweep:
        """Sort rows into an array; what is asked of them is what `score_advice` asks."""
        rows = list(rows)
        keys = [tuple(dict.fromkeys(row.get(key, "") for row in rows)) for key in ("plan", "seed", "item")]
        if not rows:
            raise MidblockError("the sweep has no scores, so advice cannot be scored")
        if unknown := [name for name in keys[0] if not plans.get(name)]:
            raise MidblockError(f"the sweep's plan {unknown[0]!r} has no blocks", hint=f"known: {', '.join(plans)}")
        values = np.full([len(each) for each in keys], np.nan)
        for row in rows:
            place = tuple(
                known.index(row.get(key, "")) for key, known in zip(("plan", "seed", "item"), keys, strict=True)
            )
            if np.isfinite(values[place]):
                raise MidblockError(f"the sweep has two scores of plan {row['plan']!r} and seed {row['seed']!r}")
            values[place] = float(row["score"]) if higher_is_better else -float(row["score"])
        return cls(tuple(map(str, keys[0])), values)

    @property
    def seeds(self) -> int:
        return self.values.shape[1]

    def mean(self, seeds: Float64[np.ndarray, "seeds"], items: Float64[np.ndarray, "items"]) -> Scores:
        """Each plan's score with so many times each seed and item; NaN where none of its own was drawn."""
        there = np.isfinite(self.values)
        weights = seeds[:, None] * items
        total = (there * weights).sum((1, 2))
        with np.errstate(invalid="ignore"):
            return (np.where(there, self.values, 0.0) * weights).sum((1, 2)) / np.where(total > 0, total, np.nan)

    def whole(self) -> Scores:
        """Each plan's score."""
        return self.mean(np.ones(self.seeds), np.ones(self.values.shape[2]))

    def draws(self, seed: int) -> list[Scores]:
        """The same in bootstrap samples; none where there is one seed and one item: nothing to resample."""
        S, I = self.seeds, self.values.shape[2]  # noqa: E741
        if S == 1 and I == 1:
            return []
        drawn = generator(seed, "advice", S, I)
        times = zip(drawn.multinomial(S, np.full(S, 1 / S), RESAMPLES),
                    drawn.multinomial(I, np.full(I, 1 / I), RESAMPLES), strict=True)  # fmt: skip
        return [self.mean(seeds.astype(float), items.astype(float)) for seeds, items in times]


def _scored(
    advice: Advice, sweep: Sweep, plans: Mapping[str, Sequence[int]], places: Sequence[int], draws: Sequence[Scores]
) -> AdviceScore:
    given = _of_plans(advice, sweep.names, plans)
    picked = _pick(advice, given, sweep.names, plans)
    told = sweep.whole()
    regret, correlation = _regret(told, picked), spearman(given[places], told[places])
    drawn = [(_regret(each, picked), spearman(given[places], each[places])) for each in draws]
    ends = [_ends([each[part] for each in drawn]) for part in (0, 1)]
    return AdviceScore(
        advice.name,
        "" if picked is None else sweep.names[picked],
        Estimate(regret, *ends[0], sweep.seeds),
        Estimate(correlation, *ends[1], len(places)),
    )


def _of_plans(advice: Advice, names: Sequence[str], plans: Mapping[str, Sequence[int]]) -> Scores:
    """What the adviser gives the blocks of each plan on average; NaN where it gives no scores."""
    if not advice.scores:
        return np.full(len(names), np.nan)
    scores = np.array(advice.scores, float)
    if (largest := max(max(plans[name]) for name in names)) >= len(scores):
        raise MidblockError(f"{advice.name} advises on {len(scores)} blocks; the sweep has a plan with block {largest}")
    return np.array([scores[list(plans[name])].mean() for name in names])


def _pick(advice: Advice, given: Scores, names: Sequence[str], plans: Mapping[str, Sequence[int]]) -> int | None:
    """The plan most like the advised blocks (of equals the first), else the one with the highest mean score."""
    if advice.blocks:
        wanted = set(advice.blocks)
        alike = [len(wanted & set(plans[name])) / len(wanted | set(plans[name])) for name in names]
        return int(np.argmax(alike))
    return int(np.nanargmax(given)) if np.isfinite(given).any() else None


def _regret(told: Scores, picked: int | None) -> float:
    if picked is None or not np.isfinite(told[picked]):
        return NAN
    return float(np.nanmax(told) - told[picked])


def spearman(one: Scores, other: Scores) -> float:
    """Spearman's rank correlation over what both know; NaN where that is fewer than three, or one side is constant."""
    known = np.isfinite(one) & np.isfinite(other)
    if known.sum() < 3:
        return NAN
    a, b = (rankdata(side[known]) - (known.sum() + 1) / 2 for side in (one, other))
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size > 0 else NAN


def _ends(draws: Sequence[float]) -> tuple[float, float]:
    finite = np.array([draw for draw in draws if np.isfinite(draw)])
    return quantiles(finite) if len(finite) else (NAN, NAN)
