"""A carving's numbers: the table's rows, and what they come to in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from midblock.base import LayerRow
from midblock.runs.surroundings import peak_memory

DENSITY = "mask_density"
BY_CHANCE = 0.5  # a rank correlation of the masks with their random start beyond this deserves a word


def density_rows(masks: Mapping[tuple[int, str], Bool[Tensor, "_"]], name: str, blocks: int) -> list[LayerRow]:
    """The share of masks that are on, of each group of each layer, and of all of a block's under `block`."""
    rows, layers = [], dict.fromkeys(layer for layer, _ in masks)
    for (layer, group), on in masks.items():
        rows.append(LayerRow(name, layer, blocks, DENSITY, float(on.float().mean()), n=len(on), module=group))
    for layer in layers:
        if 0 <= layer < blocks:
            own = [on for (other, _), on in masks.items() if other == layer]
            kept, size = sum(int(on.sum()) for on in own), sum(map(len, own))
            rows.append(LayerRow(name, layer, blocks, DENSITY, kept / size, n=size, module="block"))
    return rows


def summarize_carving(
    lines: Sequence[Mapping[str, Any]], made: Mapping[str, Any], compared: int, artifact: str
) -> dict[str, Any]:
    """What `summary.json` says, and under `notes` what a reader must know.

    Args:
        lines: of `log.jsonl`, at least one.
        made: what the carrier says of how it was made.
        compared: frozen tensors found unchanged.
        artifact: name of the carrier's folder.
    """
    sparsity = 1 - made["masks_on"] / made["masks"]
    seconds = max(lines[-1]["seconds"], 1e-9)
    return {
        "headline": _headline(made, sparsity, lines[-1]["step"]),
        "models": [],
        "method": "carve",
        "sparsity": sparsity,
        **{name: made[name] for name in KEPT},
        "steps": lines[-1]["step"],
        "nll": {"first": lines[0]["nll"], "last": lines[-1]["nll"]},
        "tokens_per_second": round(lines[-1]["tokens"] / seconds, 1),
        "peak_memory_mb": round(peak_memory() / 2**20),
        "untouched": {"checked": compared, "changed": 0},
        "artifact": artifact,
        "notes": _notes(made),
    }


KEPT = (
    "masks", "masks_on", "entries", "entries_on", "step", "loss", "budget", "budget_met", "lambda", "start_correlation",
)  # fmt: skip


def _headline(made: Mapping[str, Any], sparsity: float, steps: int) -> str:
    held = "within" if made["budget_met"] else "above"
    return (
        f"A carrier of {made['masks_on']:,} of {made['masks']:,} channels ({sparsity:.0%} sparse, "
        f"{made['entries_on'] / made['entries']:.1%} of the changed entries) has a loss of {made['loss']:.3f} nats per "
        f"token, {held} its budget of {made['budget']:.3f}, after {steps} steps."
    )


def _notes(made: Mapping[str, Any]) -> list[str]:
    notes = []
    if not made["budget_met"]:
        notes.append(
            f"The loss was never within its budget of {made['budget']:.3f} nats after the warm-up: the carrier is that "
            "of the last step. A larger --loss-budget, a smaller --lambda-max or more epochs may help."
        )
    chance = made["start_correlation"]
    if chance is not None and chance > BY_CHANCE:
        notes.append(
            f"Which channels are carried goes with their random start (Spearman {chance:.2f}): chance decided much of "
            "it. Another --seed would carry others."
        )
    return notes
