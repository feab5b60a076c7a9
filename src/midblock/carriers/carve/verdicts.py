"""Verdicts on a carrier: is it necessary, is it sufficient, and is it more than a random carrier of its size?

Necessary: taking it out of the tuned model takes away more than half of what tuning added to the behaviour's rate;
sufficient: alone in the base it brings more than half. The whole 95 % interval must lie on one side of one half, or the
evidence does not say. Special: taken out, it takes away more than every random carrier, by the paired test corrected
for all draws (Holm).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from midblock.base.few import enough
from midblock.carriers.carve.contenders import BASE, CARRIER, RANDOM, TUNED, UNTRAINED, Contender
from midblock.carriers.carve.measures import BEHAVIOUR
from midblock.carriers.carve.measuring import Found
from midblock.evaluation.paired import ALPHA, holm, paired

HALF = 0.5
YES, NO, UNTOLD, NOTHING = "yes", "no", "the evidence does not say", "nothing was taught"
NOT_MORE = {
    UNTOLD: " Whether a random carrier of its size would take away less, the evidence does not say.",
    NO: " A random carrier of its size takes away more.",
}
CALLED = {CARRIER: "The carrier", UNTRAINED: "The carrier with the tuned model's own values"}
UNTAUGHT = "the tuned model does not show the behaviour more often than the base"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """An answer to one question about a candidate.

    Attributes:
        question: "necessary", "sufficient" or "special".
        candidate: what it is about ("carrier", "pruned", …).
        answer: YES, NO, UNTOLD, or NOTHING where the tuned model does not show the behaviour more often than the base.
        share, low, high: what the candidate takes away or brings, of what tuning added, with its 95 % interval; NaN
            where there is none.
        words: the same as a sentence.
    """

    question: str
    candidate: str
    answer: str
    share: float
    low: float
    high: float
    words: str

    def as_record(self) -> dict[str, Any]:
        """For JSON, which has no NaN."""
        ends = {name: getattr(self, name) for name in ("share", "low", "high")}
        told = {"question": self.question, "candidate": self.candidate, "answer": self.answer, "words": self.words}
        return told | {name: None if math.isnan(value) else value for name, value in ends.items()}


def verdicts_of(rows: Sequence[Row], contenders: Sequence[Contender], found: Found, seed: int) -> list[Verdict]:
    """What may be said of every candidate that is no random draw, and of the carrier against those that are.

    Args:
        rows: of the necessity table.
    """
    by_name = {row["contender"]: row for row in rows if row["measure"] == BEHAVIOUR}
    candidates = list(dict.fromkeys(each.candidate.name for each in contenders if each.candidate))
    kinds = {each.candidate.name: each.kind for each in contenders if each.candidate}
    said = []
    for name in candidates:
        if kinds[name] not in (RANDOM, UNTRAINED):
            said.append(_necessary(name, by_name))
        if kinds[name] != RANDOM:
            said.append(_sufficient(name, by_name))
    draws = [name for name in candidates if kinds[name] == RANDOM]
    return [*said, *([_special(draws, by_name, found, seed)] if draws and CARRIER in candidates else [])]


def _necessary(name: str, rows: Mapping[str, Row]) -> Verdict:
    row, tuned, base = rows[f"tuned without {name}"], rows[TUNED], rows[BASE]
    share, low, high = 1 - row["part"], 1 - row["part_high"], 1 - row["part_low"]
    answer = _answer(row, low, high, _taught(tuned))
    told = (
        f"without it the tuned model shows the behaviour in {_rate(row)} of prompts (with it {_rate(tuned)}, base "
        f"{_rate(base)})"
    )
    return _told("necessary", name, answer, (share, low, high), told, "takes away")


def _sufficient(name: str, rows: Mapping[str, Row]) -> Verdict:
    row, tuned, base = rows[f"{name} alone"], rows[TUNED], rows[BASE]
    share, low, high = row["part"], row["part_low"], row["part_high"]
    answer = _answer(row, low, high, _taught(tuned))
    told = (
        f"alone in the base it shows the behaviour in {_rate(row)} of prompts (tuned model {_rate(tuned)}, base "
        f"{_rate(base)})"
    )
    return _told("sufficient", name, answer, (share, low, high), told, "brings")


def _special(draws: Sequence[str], rows: Mapping[str, Row], found: Found, seed: int) -> Verdict:
    own = found[f"tuned without {CARRIER}", BEHAVIOUR]
    others = [paired(own, found[f"tuned without {name}", BEHAVIOUR], seed) for name in draws]
    p = holm([each.p for each in others])
    more = [each.difference.value > 0 and each_p < ALPHA for each, each_p in zip(others, p, strict=True)]
    less = [each.difference.value < 0 and each_p < ALPHA for each, each_p in zip(others, p, strict=True)]
    taught = _taught(rows[TUNED])
    answer = NOTHING if not taught else YES if all(more) else NO if any(less) else UNTOLD
    closest = min(others, key=lambda each: each.difference.value).difference
    rates = ", ".join(_rate(rows[f"tuned without {name}"]) for name in draws)
    count = f"{len(draws)} random carriers" if len(draws) > 1 else "a random carrier"
    told = (
        f"with {count} of its size taken out instead, the tuned model shows the behaviour in {rates} of prompts; the "
        f"closest is {100 * closest.value:+.1f} points from it [{100 * closest.low:.1f}, {100 * closest.high:.1f}]"
    )
    opening = {
        YES: f"The carrier takes away more than {'each of ' if len(draws) > 1 else ''}{count} of its size",
        NO: "The carrier takes away less than a random carrier of its size",
        UNTOLD: "The evidence does not say whether the carrier takes away more than any random carrier of its size",
        NOTHING: "There is nothing that a carrier could take away",
    }[answer]
    return Verdict("special", CARRIER, answer, closest.value, closest.low, closest.high, f"{opening}: {told}.")


def _taught(tuned: Row) -> bool:
    """Whether the tuned model shows the behaviour more often than the base, by an interval that leaves out 0."""
    return bool(tuned[f"{BASE}_low"] > 0)


def _answer(row: Row, low: float, high: float, taught: bool) -> str:
    if not taught:
        return NOTHING
    if not enough("percentile", row["n"]):
        return UNTOLD
    return YES if low > HALF else NO if high < HALF else UNTOLD


def _told(what: str, name: str, answer: str, amount: tuple[float, float, float], told: str, does: str) -> Verdict:
    share, low, high = amount
    called = _called(name)
    opening = {
        YES: f"{called} is {what}",
        NO: f"{called} is not {what}",
        UNTOLD: f"The evidence does not say whether {called[0].lower()}{called[1:]} is {what}",
        NOTHING: f"Whether {called[0].lower()}{called[1:]} is {what} cannot be said, since {UNTAUGHT}",
    }[answer]
    known = math.isfinite(low) and math.isfinite(high)
    interval = f" [{100 * low:.0f}, {100 * high:.0f}]" if known else ", with too few prompts for an interval"
    added = "" if answer == NOTHING else f"; it {does} {100 * share:.0f} %{interval} of what tuning added"
    return Verdict(what, name, answer, share, low, high, f"{opening}: {told}{added}.")


def _called(name: str) -> str:
    return CALLED.get(name, f"The rival {name!r}")


def _rate(row: Row) -> str:
    return f"{100 * row['value']:.1f} %"


def told_once(verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The sentences of verdicts as records; what none of them can say, because nothing was taught, in one."""
    untold = [each for each in verdicts if each["answer"] == NOTHING]
    said = [each["words"] for each in verdicts if each["answer"] != NOTHING]
    if len(untold) < 2:
        return [each["words"] for each in verdicts]
    named = dict.fromkeys(_called(each["candidate"]) for each in untold)
    whom = "; ".join(f"{name[0].lower()}{name[1:]}" for name in named)
    return [*said, f"Whether it is necessary or sufficient cannot be said of any, since {UNTAUGHT}: {whom}."]


def headline_of(verdicts: Sequence[Verdict], behaviour: str) -> str:
    """The carrier's verdicts as one sentence."""
    answers = {each.question: each for each in verdicts if each.candidate == CARRIER}
    necessary, sufficient = answers["necessary"], answers["sufficient"]
    if NOTHING in (necessary.answer, sufficient.answer):
        return f"The tuned model does not show {behaviour} more often than the base: there is nothing to carry."
    opened = {(YES, YES): "necessary and sufficient", (YES, NO): "necessary, not sufficient",
              (NO, YES): "sufficient, not necessary", (NO, NO): "neither necessary nor sufficient",
              (YES, UNTOLD): "necessary (whether it is sufficient, the evidence does not say)",
              (UNTOLD, YES): "sufficient (whether it is necessary, the evidence does not say)",
              (NO, UNTOLD): "not necessary (whether it is sufficient, the evidence does not say)",
              (UNTOLD, NO): "not sufficient (whether it is necessary, the evidence does not say)"}  # fmt: skip
    said = opened.get((necessary.answer, sufficient.answer))
    start = f"For {behaviour} the carrier is {said}"
    if said is None:
        start = f"Whether {behaviour} rests on the carrier, the evidence does not say"
    took, brought = (f"{100 * each.share:.0f} %" for each in (necessary, sufficient))
    before = next((each for each in verdicts if each.candidate == UNTRAINED), None)
    if before is not None and sufficient.answer == YES != before.answer:
        brought += f" ({100 * before.share:.0f} % with the tuned model's own values)"
    special = answers.get("special")
    more = "" if special is None or necessary.answer != YES else NOT_MORE.get(special.answer, "")
    return f"{start}: taken out, it takes away {took} of what tuning added; alone, it brings {brought}.{more}"
