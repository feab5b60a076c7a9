"""What a swap found, in one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping

from midblock.base import Estimate
from midblock.interventions.swap.cells import Cell


def headline(host: str, donor: str, head: str, changes: Mapping[Cell, Estimate], gap: float) -> str:
    """Name the cell that moves the host furthest towards the donor, or say that none clearly does.

    Args:
        head: whose head reads both models and all that is put together of them.
        changes: of the host's NLL, by what was put in; their intervals hold for all of them at once, or the best of
            several would too often seem to do something.
        gap: the donor's NLL minus the host's.
    """
    best = max(changes, key=lambda cell: changes[cell].value * gap)
    change, many = changes[best], f"of {len(changes)} swaps into {host}"
    if math.isnan(change.low):
        said = f"{_moves(best, donor)} the answers' NLL most {many}: by {change.value:+.3f} nats per token"
        said += ", with too few prompts for an interval"
        return f"{said}; read by {head}'s head, the models differ by {gap:+.3f}"
    if not (change.low > 0 or change.high < 0):
        said = f"None {many} clearly moves the answers' NLL"
        return f"{said}; read by {head}'s head, the models differ by {gap:+.3f} nats per token"
    return (
        f"{_moves(best, donor)} the answers' NLL most {many}: by {change.value:+.3f} nats "
        f"per token (95 % interval {change.low:+.3f} to {change.high:+.3f}); "
        f"read by {head}'s head, the models differ by {gap:+.3f}"
    )


def _moves(cell: Cell, donor: str) -> str:
    """Subject and verb: "Blocks 1-2 of sft move"."""
    if len(cell.blocks) > 1:
        return f"Blocks {cell} of {donor} move"
    return f"Block {cell} of {donor} moves" if cell.blocks else f"The embedding of {donor} moves"
