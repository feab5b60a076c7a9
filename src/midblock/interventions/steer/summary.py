"""What steering found, in the numbers of summary.json and in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from midblock.base import LayerPlan
from midblock.evaluation import TokenMean, difference
from midblock.interventions.steer.directions import Directions
from midblock.interventions.steer.effect import Effect, gap_closed, gap_closed_interval
from midblock.interventions.steer.settings import SteerSettings, alpha_label

NAMES = {"mean_shift": "the mean shift", "pca": "the shift's principal part", "random": "a random direction"}


def summarize_steering(
    tuned: str,
    plan: LayerPlan,
    directions: Directions,
    settings: SteerSettings,
    base: TokenMean,
    target: TokenMean,
    effects: Sequence[Effect],
) -> dict[str, Any]:
    """Build `summary.json`.

    Args:
        tuned: name of the tuned model.
        base, target: NLL of its answers under the base and under itself.
        effects: in the order of the α asked for.
    """
    alphas = [_alpha_record(effect, base, target, settings.seed) for effect in effects]
    return {
        "headline": _headline(tuned, plan, directions.kind, alphas),
        "models": [],
        "tuned": tuned,
        "blocks": str(plan),
        "kind": directions.kind,
        "components": directions.components,
        "adding": settings.adding,
        "scan_alpha": settings.scan_alpha if settings.scan else None,
        "prompts": base.n,
        "base": base.interval.as_record(),
        "tuned_nll": target.interval.as_record(),
        "gap": difference(target, base, seed=settings.seed).as_record(),
        "alphas": alphas,
    }


def _alpha_record(effect: Effect, base: TokenMean, target: TokenMean, seed: int) -> dict[str, Any]:
    control = effect.random_change
    return {
        "alpha": effect.alpha,
        "steered": effect.steered.interval.as_record(),
        "change": effect.change.as_record(),
        "random_change": control,
        "gap_closed": gap_closed(base, target, effect.steered.value, seed),
        "gap_closed_interval": gap_closed_interval(base, target, effect.steered, seed),
        "random_gap_closed": gap_closed(base, target, base.value + control["value"], seed),
    }


def _headline(tuned: str, plan: LayerPlan, kind: str, alphas: Sequence[dict[str, Any]]) -> str:
    best = min(alphas, key=lambda record: record["change"]["value"])
    which = f"α {alpha_label(best['alpha'])}" + (f", the best of {len(alphas)}" if len(alphas) > 1 else "")
    many = "block" if len(plan.blocks) == 1 else "blocks"
    blocks = str(plan.blocks[0]) if len(plan.blocks) == 1 else str(plan).replace("-", "–")
    start = f"Adding {NAMES[kind]} at {many} {blocks} ({which})"
    if best["gap_closed"] is None:
        change, control = best["change"]["value"], best["random_change"]["value"]
        return (
            f"{start} changes the NLL of {tuned}'s held-out answers by {_signed(change)} nats per token (random "
            f"directions: {_signed(control)}); base and {tuned} do not differ measurably on them."
        )
    closed, control = (f"{100 * best[key]:.0f} %".replace("-", "−") for key in ("gap_closed", "random_gap_closed"))
    low, high = (f"{100 * end:.0f}".replace("-", "−") for end in best["gap_closed_interval"])
    return (
        f"{start} closes {closed} (95 % interval {low} to {high}) of the gap between base and {tuned} on held-out "
        f"answers (random directions: {control})."
    )


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")
