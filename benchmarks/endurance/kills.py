"""A run that is killed, goes on, and is held against one that nobody stopped."""

from __future__ import annotations

import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.endurance.cases import CASES, Case
from benchmarks.endurance.child import Ended
from benchmarks.endurance.same import Against
from benchmarks.endurance.workshop import Workshop

PLACED, DRAWN, ROW, OVER = "placed", "drawn", "three in a row", "over a whole one"
SIGNALS = {DRAWN: signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
TRIES = 6  # until a kill drawn at random falls into the run and not behind its end


@dataclass(frozen=True)
class Verdict:
    """What became of a run.

    Attributes:
        case, kind: what was run, and how it was stopped.
        when: at which event, or after which share of its time.
        kills: how often it was stopped.
        against: what the place holds after the next run, against an unkilled one's.
        stuck: what was told where no flag helped, "" otherwise.
        told: what was wrong in how it ended or in what it said, "" where nothing was.
    """

    case: str
    kind: str
    when: str
    kills: int
    against: Against
    stuck: str = ""
    told: str = ""

    @property
    def good(self) -> bool:
        return not (self.stuck or self.told or any(vars(self.against).values()))


def placed(shop: Workshop, name: str, event: int) -> Verdict | None:
    """SIGKILL before the run touches a name for the given time, counted from 1; None where it touches fewer."""
    place = shop.place(CASES[name])
    killed = _killed(shop, name, (), place, event)
    return _go_on(shop, name, PLACED, str(event), place, killed) if killed else None


def over(shop: Workshop, name: str, event: int) -> Verdict | None:
    """A whole run is there and is replaced; that is killed before it touches a name for the given time."""
    case = CASES[name]
    place = shop.place(case)
    shop.start(name, (), place).end()
    killed = _killed(shop, name, case.whole, place, event)
    return _go_on(shop, name, OVER, str(event), place, killed) if killed else None


def in_a_row(shop: Workshop, name: str, events: Sequence[int]) -> Verdict | None:
    """Killed, and again while it goes on, at the given events."""
    case = CASES[name]
    place = shop.place(case)
    flags = ((), *(case.again[0] for _ in events[1:]))
    killed = sum(_killed(shop, name, each, place, event) for each, event in zip(flags, events, strict=True))
    return _go_on(shop, name, ROW, ", ".join(map(str, events)), place, killed) if killed else None


def drawn(shop: Workshop, name: str, kind: str, source: random.Random) -> Verdict | None:
    """A signal from outside at a moment that is drawn; None where it came too late each time."""
    for _ in range(TRIES):
        share = source.random()
        place = shop.place(CASES[name])
        ended = shop.start(name, (), place).end(after=share * shop.whole(name).seconds, by=SIGNALS[kind])
        if ended.code != 0:
            told = "" if kind == DRAWN else _wrong(CASES[name], ended, kind)
            return _go_on(shop, name, kind, f"{share:.2f}", place, 1, told)
    return None


def _killed(shop: Workshop, name: str, flags: Sequence[str], place: Path, event: int) -> int:
    """1 where the run got as far as the event, before which it was killed; 0 where it ended by itself."""
    return int(shop.start(name, flags, place, kill_at=event).end().code == -signal.SIGKILL)


def _wrong(case: Case, ended: Ended, kind: str) -> str:
    """What is wrong with how a run ended that was asked to."""
    code = 128 + SIGNALS[kind]
    if ended.code != code:
        return f"ends with {ended.code}, not {code}"
    if ended.crashed or len(ended.lines) != 1:
        return f"{len(ended.lines)} lines{', a traceback' * ended.crashed}"
    if ("--resume" in ended.lines[0]) != case.resumes:
        return f"advises: {ended.lines[0]}"
    return ""


def _go_on(shop: Workshop, name: str, kind: str, when: str, place: Path, kills: int, told: str = "") -> Verdict:
    last = None
    for flags in CASES[name].again:
        last = shop.start(name, flags, place).end()
        if last.code == 0:
            return Verdict(name, kind, when, kills, shop.against(name, place), told=told)
        if last.crashed or last.code is None:
            break
    assert last is not None
    said = "it hangs" if last.code is None else last.told.strip().rpartition("\n")[2]
    return Verdict(name, kind, when, kills, Against(), stuck=said, told=told)
