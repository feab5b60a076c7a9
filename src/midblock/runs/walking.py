"""Works of many batches together, block by block: the counterpart of `steps` for a pair that is walked in parts.

What is kept of an unfinished walk lies in `blocks` in the run's folder for such things; at the end every accumulator
holds as many samples as the steps promised. Where several processes share the run, each walks its own batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from midblock.base import MidblockError
from midblock.checkpoints import Pair
from midblock.runs.processes import local_size
from midblock.runs.sharing import shared
from midblock.runs.steps import Step, brought_together, of_other_counts, own_folder, plan_of
from midblock.runs.stopping import STOPPING
from midblock.trace import RowStore
from midblock.trace.engine import Engine, choose_engine
from midblock.trace.pieces import SAVE_SECONDS
from midblock.trace.tensor_store import TensorStore
from midblock.trace.walk import Pass, Work
from midblock.trace.walk_blocks import Behind, WalkBlocks


def engine_for(pair: Pair, *, tokens: int, rounded: bool = False, together: bool = False) -> Engine:
    """As `choose_engine`, for all processes that share the run: none loads a model before all have chosen.

    Raises:
        MidblockError: as `choose_engine`; or they chose differently, as they may on machines that are not alike.
    """
    among = shared()
    copies = local_size() if among.count > 1 else 1
    choose = partial(choose_engine, pair, tokens=tokens, rounded=rounded, together=together, copies=copies)
    engine = among.agreed(choose)
    if len(set(among.all_texts(engine.kind))) > 1:
        what = "the models fit whole into the memory of some processes and not of others"
        raise MidblockError(what, hint="--max-memory walks them block by block in all")
    return engine


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
    among, steps = shared(), [step for step, _ in works]
    notes = of_other_counts(partial, among.count)
    mine = among.share(works)
    part = share * sum(step.cost for step in steps) / (sum(step.cost for step, _ in mine) or 1.0)
    whose = plan_of(owner, [step for step, _ in mine])
    own = own_folder(partial)
    with TensorStore(own / "blocks" if own else None, limit, whose, save_seconds) as kept:
        walking = WalkBlocks(pair.in_parts, kept, keep, _telling(advance, part / pair.blocks), STOPPING.due)
        among.agreed(_walk, walking, [work for _, work in mine])
    return [*notes, *brought_together(steps, store, walking.notes)]


def _walk(walking: WalkBlocks, works: Sequence[Work]) -> None:
    with STOPPING.stoppable():
        done = walking.run(works)
    if not done:
        STOPPING.stop()


def _telling(advance: Callable[[float], None], share: float) -> Behind:
    """What a pass through a block counts for, where others advance as this process does."""

    def behind(wanted: Pass, block: int) -> None:
        shared().check_others()
        advance(share * wanted.batch.input_ids.numel() if wanted.counts else 0.0)

    return behind
