"""INTERVENTIONS: the one table of what interventions measure by depth, with what a reader needs to read a number."""

from __future__ import annotations

from collections.abc import Iterator

from midblock.metrics import Metric

NONE: frozenset[str] = frozenset()  # `analyze` cannot be asked for any of them


def _exit(title: str, unit: str, meaning: str, bounds: tuple[float | None, float | None]) -> Metric:
    return Metric(f"Early exit, {title}", unit, "tokens", False, "bootstrap", meaning, bounds, NONE)


def _steer(
    title: str, unit: str, meaning: str, bounds: tuple[float | None, float | None] = (None, None), interval: str = ""
) -> Metric:
    return Metric(f"Steering, {title}", unit, "pooled", True, interval, meaning, bounds, NONE)


# The quantities of a swap's cells: title, unit, meaning, bounds.
_SWAPPED = {
    "accuracy": ("accuracy", "0–1", "Share of answer tokens predicted rightly", (0, 1)),
    "nll": ("NLL", "nats per token", "Negative log-likelihood of the answers", (0, None)),
    "perplexity": ("perplexity", "per token", "Exponential of the answers' NLL", (1, None)),
    "exact_match": ("exact match", "0–1", "Share of greedy answers that are right", (0, 1)),
    "accuracy_change": ("change of accuracy", "0–1", "Accuracy minus that without the swap, same prompts", (-1, 1)),
    "nll_change": ("change of NLL", "nats per token", "NLL minus that without the swap, same prompts", (None, None)),
    "exact_match_change": ("change of exact match", "0–1", "Exact match minus that without the swap", (-1, 1)),
}
_CELLS = {
    "swap": ("Swap", "with blocks of the other model put in."),
    "swap_bottom": ("Swap from below", "with all blocks up to here from the other model."),
    "swap_top": ("Swap from above", "with this block and all above it from the other model."),
}


def _swaps() -> Iterator[tuple[str, Metric]]:
    for prefix, (kind, how) in _CELLS.items():
        for name, (title, unit, meaning, bounds) in _SWAPPED.items():
            interval = "wilson" if name.startswith("exact_match") else "bootstrap"
            yield (
                f"{prefix}_{name}",
                Metric(f"{kind}, {title}", unit, "tokens", True, interval, f"{meaning}, {how}", bounds, NONE),
            )


INTERVENTIONS: dict[str, Metric] = {
    "exit_accuracy": _exit(
        "accuracy", "0–1", "Share of answer tokens whose likeliest token, read off at this depth, is right.", (0, 1)
    ),
    "exit_nll": _exit("NLL", "nats per token", "Negative log-likelihood of the answers, read off here.", (0, None)),
    "exit_perplexity": _exit("perplexity", "per token", "Exponential of the NLL at this depth.", (1, None)),
    "exit_exact_match": _exit(
        "exact match", "0–1", "Share of right answers when the model is cut off behind this block.", (0, 1)
    ),
    **dict(_swaps()),
    "steer_norm": _steer("size of the direction", "L2", "Norm of what is added at this block.", (0, None)),
    "steer_norm_relative": _steer(
        "size over the states' norm", "relative", "Norm of the direction over that of the base's states, on average.",
        (0, None),
    ),
    "steer_explained": _steer(
        "share of the change", "0–1", "Share of the mean square of tuned minus base states along the directions.",
        (0, 1),
    ),
    "steer_nll_change": _steer(
        "change of NLL", "nats per token", "NLL of the tuned model's answers with this block alone steered, minus the "
        "base's; below zero is towards the tuned model.", interval="bootstrap",
    ),
    "merge_alpha": Metric(
        "Share of the tuned model", "α", "weights", True, "", "W = (1 − α)·base + α·tuned.", (None, None), NONE
    ),
}  # fmt: skip
