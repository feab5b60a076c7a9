"""ADVICE: what a recommendation's table holds, with what a reader needs to read a number."""

from __future__ import annotations

from midblock.metrics import Metric

NONE: frozenset[str] = frozenset()  # `analyze` cannot be asked for any of them
BY_VERB = {"analyze": "advice_own", "swap": "advice_swap", "flow": "advice_gradient"}


def _seen(title: str, unit: str, meaning: str, bounds: tuple[float | None, float | None] = (0, None)) -> Metric:
    return Metric(title, unit, "pooled", False, "", meaning, bounds, NONE)


ADVICE: dict[str, Metric] = {
    "advice_own": _seen("Own change", "relative", "What each block's own tuning changes, or how far weights moved."),
    "advice_swap": _seen(
        "Swap gain", "nats per token", "How far this block of the tuned model, put into the base, lowers its NLL.",
        (None, None),
    ),
    "advice_gradient": _seen("Gradient norm", "L2", "How hard the loss pulls on the block's weights."),
    "advice_plan": _seen("Recommended", "0–1", "1 for a block that is recommended, else 0.", (0, 1)),
    "advice_rank": _seen("Rank", "rank", "Rank of the block's adapters, where a budget of ranks was given."),
    "advice_alpha": _seen("α of the repair", "α", "W = (1 − α)·base + α·tuned.", (0, 1)),
}  # fmt: skip
