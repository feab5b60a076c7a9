"""Numbered steps whose rows are saved piece by piece, so that a killed run goes on at the step it had reached.

A piece is written every 30 seconds and behind the last step (`trace.Pieces`); rows come out the same to the bit,
however often it was stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from midblock.trace import Pieces, RowStore
from midblock.trace.pieces import SAVE_SECONDS

Step = tuple[float, Callable[[], None]]  # what it costs, and what it does


def run_steps(
    steps: Sequence[Step],
    store: RowStore,
    partial: Path | None,
    advance: Callable[[float], None],
    *,
    save_seconds: float = SAVE_SECONDS,
) -> None:
    """Do what is left to do.

    Args:
        steps: each with its cost; the same ones in a run that is resumed. They put rows into `store`.
        partial: folder for pieces of an unfinished run, None to keep rows in memory only.
        advance: hears the cost of each step that is behind.
        save_seconds: least time between two pieces.

    Raises:
        MidblockError: whatever a step raises, or a piece of an earlier run that cannot be read.
    """
    pieces = Pieces(store, partial, save_seconds)
    done = pieces.restore()
    for number, (cost, step) in enumerate(steps, start=1):
        if number > done:
            step()
            pieces.step(number, last=number == len(steps))
        advance(cost)
