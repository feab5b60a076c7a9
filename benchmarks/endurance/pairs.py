"""Two processes in one folder: one fills it, the other is told so in one line, and the result is that of one."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.endurance.cases import CASES, RESUME, Case
from benchmarks.endurance.child import Ended
from benchmarks.endurance.kills import Verdict
from benchmarks.endurance.workshop import Workshop

FRESH, LATE, RESUMED, REPLACED = "both fresh", "one later", "both go on", "one replaces"


def pair(shop: Workshop, name: str, kind: str, source: random.Random) -> Verdict:
    """Run a command twice in one place."""
    case, whole = CASES[name], shop.whole(name)
    place = shop.place(case)
    if kind in (RESUMED, REPLACED):
        shop.start(name, (), place, kill_at=source.randint(2, whole.events)).end()
    flags = {RESUMED: (case.again[-1],) * 2, REPLACED: (case.whole, case.again[-1])}.get(kind, ((), ()))
    wait = source.uniform(0.1, 0.8) * whole.seconds if kind == LATE else 0.0
    ended = _both(shop, name, flags, place, wait)
    told = _wrong(case, ended)
    return Verdict(name, kind, f"{wait:.2f} s", 0, shop.against(name, place), told=told)


def kinds_of(case: Case) -> list[str]:
    """What two processes of a command can be asked for."""
    kinds = [FRESH, LATE]
    return [*kinds, *((RESUMED,) if RESUME in case.again else ()), *((REPLACED,) if case.whole else ())]


def _both(shop: Workshop, name: str, flags: Sequence[tuple[str, ...]], place: Path, wait: float) -> tuple[Ended, Ended]:
    gate, opening = os.pipe()
    first, second = (shop.start(name, each, place, gate=gate) for each in flags)
    os.write(opening, b".")
    time.sleep(wait)
    os.write(opening, b".")
    ended = first.end(), second.end()
    os.close(gate)
    os.close(opening)
    return ended


def _wrong(case: Case, ended: tuple[Ended, Ended]) -> str:
    """What is wrong with how the two ended; one that began behind the other's end may do what it likes."""
    codes = sorted(-1 if each.code is None else each.code for each in ended)
    if any(each.crashed for each in ended) or codes not in ([0, 0], [0, 2]):
        last = [each.told.strip().rpartition("\n")[2][:100] for each in ended]
        return f"end with {ended[0].code} and {ended[1].code}: {' | '.join(last)}"
    makers = [each for each in ended if each.made(case.made)]
    if len(makers) == 2 and not _apart(*makers):
        return "both filled it"
    refused = [each for each in ended if each.code == 2]
    if any(len(each.lines) != 1 for each in refused):
        return f"not one line: {refused[0].told.strip()[:200]}"
    return ""


def _apart(first: Ended, second: Ended) -> bool:
    """Whether one gave no name until the other had given all it gave: it waited for the lock."""
    spans = sorted((times[0], times[-1]) for times in (_named(first), _named(second)))
    return spans[1][0] >= spans[0][1]


def _named(ended: Ended) -> list[float]:
    return [when for when, event, _ in ended.events if event == "os.rename"]
