"""Numbered steps whose rows are saved piece by piece, so that a killed run goes on at the step it had reached.

A piece is written every 30 seconds and behind the last step (`trace.Pieces`); rows come out the same to the bit,
however often it was stopped. At the end every accumulator holds as many samples as the steps promised. Where several
processes share the run, each does its share, keeps its own pieces, and in the end all hold all rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from midblock.base import MidblockError
from midblock.base.seal import fingerprint
from midblock.runs.sharing import shared
from midblock.runs.stopping import STOPPING
from midblock.trace import Pieces, RowStore
from midblock.trace.pieces import SAVE_SECONDS

# where a process that is alone keeps pieces: of steps, of a walk by blocks, of a swap by blocks
OF_ONE = ("*.safetensors", "blocks/*.safetensors", "entering*/*.safetensors")


@dataclass(frozen=True)
class Step:
    """One step of a plan.

    Attributes:
        cost: what the progress bar hears.
        do: puts rows into the store.
        keys: the accumulators it puts rows into.
        index: the samples it does so for, one row each.
    """

    cost: float
    do: Callable[[], None]
    keys: tuple[str, ...] = ()
    index: tuple[int, ...] = ()


def run_steps(
    steps: Sequence[Step],
    store: RowStore,
    partial: Path | None,
    advance: Callable[[float], None],
    *,
    owner: str = "",
    save_seconds: float = SAVE_SECONDS,
) -> list[str]:
    """Do what is left to do.

    Args:
        steps: the same ones in a run that is resumed.
        partial: folder for pieces of an unfinished run, None to keep rows in memory only.
        advance: hears the cost of each step that is behind.
        owner: fingerprint of the run; pieces of another one are refused.
        save_seconds: least time between two pieces.

    Returns:
        What a reader must know of pieces that were dropped.

    Raises:
        MidblockError: whatever a step raises, a piece that another run kept, or samples that are missing at the end.
    """
    among = shared()
    mine = among.share(steps)
    pieces = Pieces(store, own_folder(partial), save_seconds, plan_of(owner, mine))
    notes = of_other_counts(partial, among.count)
    among.agreed(_do, mine, pieces, advance, sum(step.cost for step in steps))
    return [*notes, *brought_together(steps, store, pieces.notes)]


def brought_together(steps: Sequence[Step], store: RowStore, notes: Sequence[str]) -> list[str]:
    """Give every process what all of them found, and see that it is whole.

    Args:
        notes: of this process.

    Returns:
        Those of all processes.

    Raises:
        MidblockError: samples are missing.
    """
    among = shared()
    for rows in among.all_tensors(store.taken()):
        store.restore(rows)
    check_whole(steps, store)
    return [note for text in among.all_texts("\n".join(notes)) for note in text.splitlines()]


def own_folder(partial: Path | None) -> Path | None:
    """Where this process keeps its pieces."""
    among = shared()
    return partial / f"process{among.rank}of{among.count}" if partial and among.count > 1 else partial


def of_other_counts(partial: Path | None, count: int) -> list[str]:
    """A note where another number of processes kept pieces: their shares are not these processes'."""
    if partial is None:
        return []
    kept = {int(place.name.rpartition("of")[2]) for place in partial.glob("process*of*")}
    own = (file for pattern in OF_ONE for file in partial.glob(pattern))
    kept |= {1 for file in own if file.stem.isdigit()}
    return [f"What {other} process(es) had kept was found anew by {count}." for other in sorted(kept - {count})]


def _do(steps: Sequence[Step], pieces: Pieces, advance: Callable[[float], None], total: float) -> None:
    """Do what is left of one process's share, of a run whose steps cost `total`."""
    done = pieces.restore()
    whole = total / (sum(step.cost for step in steps) or 1.0)  # others advance as this one does
    with STOPPING.stoppable():
        for number, step in enumerate(steps, start=1):
            stop = False
            if number > done:
                shared().check_others()
                step.do()
                stop = STOPPING.due()
                pieces.step(number, last=stop or number == len(steps))
            advance(step.cost * whole)
            if stop:
                STOPPING.stop()


def plan_of(owner: str, steps: Sequence[Step]) -> str:
    """Fingerprint of a run's numbered steps: costs, keys and samples."""
    return fingerprint(owner, [[step.cost, fingerprint(step.keys), step.index] for step in steps])


def check_whole(steps: Sequence[Step], store: RowStore) -> None:
    """Raise MidblockError where an accumulator holds fewer or more samples than was promised."""
    promised: Counter[str] = Counter()
    for step in steps:
        promised.update(dict.fromkeys(step.keys, len(step.index)))
    for key, count in promised.items():
        found = len(store.rows[key]) if key in store.rows else 0
        if found != count:
            raise MidblockError(f"{key} holds {found} of {count} samples", hint="--overwrite begins again")
