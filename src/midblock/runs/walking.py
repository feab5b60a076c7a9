"""Works of many batches together, block by block: the counterpart of `steps` for a pair that is walked in parts.

What is kept of an unfinished walk lies in `blocks` in the run's folder for such things; at the end every accumulator
holds as many samples as the steps promised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from midblock.base.seal import fingerprint
from midblock.checkpoints import Pair
from midblock.runs.steps import Step, check_whole
from midblock.runs.stopping import STOPPING
from midblock.trace import RowStore
from midblock.trace.kept import Kept
from midblock.trace.pieces import SAVE_SECONDS
from midblock.trace.walk import Pass, Work
from midblock.trace.walk_blocks import WalkBlocks


def run_walk(
    pair: Pair,
    works: Sequence[tuple[Step, Work]],
    store: RowStore,
    keep: Callable[[Any], None],
    partial: Path | None,
    advance: Callable[[float], None],
    *,
    owner: str,
    limit: int,
    share: float = 1.0,
    save_seconds: float = SAVE_SECONDS,
) -> list[str]:
    """Do works, each with the step that says what it promises.

    Args:
        pair: in parts.
        store, partial, advance, owner, save_seconds: as of `run_steps`.
        keep: given what the works find.
        share: of a batch's tokens that one pass through a model counts for.
        limit: bytes of states that are held in memory.

    Returns:
        What a reader must know of pieces that were dropped.

    Raises:
        MidblockError: as `run_steps`.
    """
    models, total = pair.in_parts, pair.blocks

    def behind(wanted: Pass, block: int) -> None:
        advance(share * wanted.batch.input_ids.numel() / total if wanted.counts else 0.0)

    folder = partial / "blocks" if partial else None
    whose = fingerprint(owner, [[step.cost, fingerprint(step.keys), step.index] for step, _ in works])
    with Kept(folder, limit, whose, save_seconds) as kept:
        walking = WalkBlocks(models, kept, keep, behind, STOPPING.due)
        with STOPPING.stoppable():
            done = walking.run([work for _, work in works])
        if not done:
            STOPPING.stop()
    check_whole([step for step, _ in works], store)
    return walking.notes
