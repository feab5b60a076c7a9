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
from benchmarks.endurance.table import faults, markdown
from benchmarks.endurance.workshop import Workshop


def kills(shop: Workshop, name: str, options: argparse.Namespace, source: random.Random) -> Iterator[Verdict]:
    """Every kind of kill for one command; each placed one at another event."""
    events = shop.whole(name).events
    for event in sorted(source.sample(range(1, events + 1), min(options.placed, events))):
        yield placed(shop, name, event)
    for kind in SIGNALS:
        for _ in range(options.drawn if kind == DRAWN else options.asked):
            if (verdict := drawn(shop, name, kind, source)) is not None:
                yield verdict
    for _ in range(options.rows):
        yield in_a_row(shop, name, [source.randint(1, events) for _ in range(3)])
    if CASES[name].whole:
        for event in source.sample(range(1, events + 1), min(options.over, events)):
            yield over(shop, name, event)


def pairs(shop: Workshop, name: str, options: argparse.Namespace, source: random.Random) -> Iterator[Verdict]:
    """Every kind of pair for one command."""
    for kind in kinds_of(CASES[name]):
        for _ in range(options.pairs):
            yield pair(shop, name, kind, source)


def main(arguments: Sequence[str] | None = None) -> list[Verdict]:
    options = _options(arguments)
    torch.set_num_threads(1)
    if not options.draw:
        Figure.savefig = _sketch  # type: ignore[assignment,method-assign]
        Figure.draw_without_rendering = lambda self: None  # type: ignore[method-assign]
    found: dict[str, list[Verdict]] = {"Kills": [], "Pairs": []}
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        shop = Workshop(Path(scratch).resolve())
        shop.prepare(options.cases)
        for name in options.cases:
            source = random.Random(f"{options.seed} {name}")  # noqa: S311
            for title, made in (("Kills", kills), ("Pairs", pairs)):
                for verdict in made(shop, name, options, source):
                    found[title].append(verdict)
                    for line in faults([verdict]):
                        print(line, file=sys.stderr, flush=True)
    for title, verdicts in found.items():
        print(f"\n{title}\n\n{markdown(verdicts)}")
    print(f"\nseed {options.seed}; {time.process_time() + sum(os.times()[2:4]):.0f} s of CPU")
    return [verdict for verdicts in found.values() for verdict in verdicts]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--placed", type=int, default=14, help="kills before a name on the disk is touched, a command")
    parser.add_argument("--drawn", type=int, default=4, help="SIGKILLs at random, a command")
    parser.add_argument("--asked", type=int, default=2, help="SIGTERMs, and SIGINTs, at random, a command")
    parser.add_argument("--rows", type=int, default=2, help="runs killed three times, a command")
    parser.add_argument("--over", type=int, default=2, help="kills of a run that replaces a whole one, a command")
    parser.add_argument("--pairs", type=int, default=1, help="pairs of each kind, a command")
    parser.add_argument("--draw", action="store_true", help="draw the figures' pixels too; takes three times as long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", help="where to work; by default the system's temporary folder")
    return parser.parse_args(arguments)


def _sketch(figure: Figure, file: Path, **_: object) -> None:
    Path(file).write_text("a figure", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(any(not verdict.good for verdict in main()))
