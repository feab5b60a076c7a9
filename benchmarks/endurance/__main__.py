"""`python -m benchmarks.endurance`: kill every verb, pair every verb, print what was lost."""

from __future__ import annotations

import os

# before torch is loaded: a process that is forked must not have threads
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1"}

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from benchmarks.endurance.cases import CASES
from benchmarks.endurance.kills import DRAWN, SIGNALS, Verdict, drawn, in_a_row, over, placed
from benchmarks.endurance.pairs import kinds_of, pair
from benchmarks.endurance.table import faults, markdown, read, write
from benchmarks.endurance.workshop import Workshop


def kills(shop: Workshop, name: str, options: argparse.Namespace, source: random.Random) -> Iterator[Verdict | None]:
    """Every kind of kill for one command; each placed one at another event."""
    events = shop.whole(name).events
    for event in sorted(source.sample(range(1, events + 1), min(options.placed, events))):
        yield placed(shop, name, event)
    for kind in SIGNALS:
        for _ in range(options.drawn if kind == DRAWN else options.asked):
            yield drawn(shop, name, kind, source)
    for _ in range(options.rows):
        yield in_a_row(shop, name, [source.randint(1, events) for _ in range(3)])
    if CASES[name].whole:
        for event in source.sample(range(1, events + 1), min(options.over, events)):
            yield over(shop, name, event)


def pairs(shop: Workshop, name: str, options: argparse.Namespace, source: random.Random) -> Iterator[Verdict | None]:
    """Every kind of pair for one command."""
    for kind in kinds_of(CASES[name]):
        for _ in range(options.pairs):
            yield pair(shop, name, kind, source)


def carry_out(options: argparse.Namespace) -> Iterator[Verdict]:
    """Kill and pair the commands that are asked for, one after the other."""
    torch.set_num_threads(1)
    if not options.draw:
        Figure.savefig = _sketch  # type: ignore[assignment,method-assign]
        Figure.draw_without_rendering = lambda self: None  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        shop = Workshop(Path(scratch).resolve())
        shop.prepare(options.cases)
        for name in options.cases:
            source = random.Random(f"{options.seed} {name}")  # noqa: S311
            for made in (kills, pairs):
                yield from filter(None, made(shop, name, options, source))


def main(arguments: Sequence[str] | None = None) -> list[Verdict]:
    options = _options(arguments)
    if options.show:
        found = [verdict for file in options.show for verdict in read(file)]
    else:
        found = []
        for verdict in carry_out(options):
            found.append(verdict)
            if options.keep:
                write(verdict, options.keep)
            if said := faults(verdict):
                print(said, file=sys.stderr, flush=True)
    print(f"{markdown(found)}\n\nseed {options.seed}; {time.process_time() + sum(os.times()[2:4]):.0f} s of CPU")
    return found


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--placed", type=int, default=12, help="kills before a name on the disk is touched, a command")
    parser.add_argument("--drawn", type=int, default=3, help="SIGKILLs at random, a command")
    parser.add_argument("--asked", type=int, default=2, help="SIGTERMs, and SIGINTs, at random, a command")
    parser.add_argument("--rows", type=int, default=1, help="runs killed three times, a command")
    parser.add_argument("--over", type=int, default=1, help="kills of a run that replaces a whole one, a command")
    parser.add_argument("--pairs", type=int, default=1, help="pairs of each kind, a command")
    parser.add_argument("--draw", action="store_true", help="draw the figures' pixels too; takes three times as long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="file that verdicts are added to")
    parser.add_argument("--show", type=Path, nargs="+", help="run nothing: the tables of verdicts that were kept")
    parser.add_argument("--scratch", help="where to work; by default the system's temporary folder")
    return parser.parse_args(arguments)


def _sketch(figure: Figure, file: Path, **_: object) -> None:
    Path(file).write_text("a figure", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(any(not verdict.good for verdict in main()))
