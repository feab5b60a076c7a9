"""The conditions of a gate, read from one line of text: each says what a run must not show.

    kl_answers>0.5, change_own[0-5,L]@sft>>0.05, delta_rel:q_proj<=0.001

METRIC, then `:MODULE`, `[LAYERS]` and `@MODEL` where wanted, a comparator, a number. Nothing is measured yet and no
model is known: names and layers are looked up later (`ahead`, `check`). Described in docs/gate.md.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from midblock.base import LayerPlan, MidblockError
from midblock.base.json_file import shown

FORM = "write it like 'kl_answers>0.5' or 'change_own[0-5]@sft>>0.05'"
LONGEST = 10_000  # letters of all conditions
CONDITION = re.compile(
    r"""\s*(?P<metric>[A-Za-z][A-Za-z0-9_.]*)\s*
    (?::\s*(?P<module>[^\s\[\]@<>=,":]+)\s*)?
    (?:\[(?P<layers>[^\[\]]*)\]\s*)?
    (?:@\s*(?P<model>"(?:[^"\\]|\\.)*"|[^\s<>=@,"\[\]](?:[^<>=@,"\[\]]*[^\s<>=@,"\[\]])?)\s*)?
    (?P<comparator>>>|<<|>=|<=|>|<)\s*
    (?P<bound>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*""",
    re.VERBOSE,
)
LAYERS = re.compile(r"\s*(?P<first>-1|L|[0-9]{1,9})\s*(?:-\s*(?P<last>L|[0-9]{1,9})\s*)?")
FRACTIONS = re.compile(r"\s*[0-9]*\.?[0-9]+\s*-\s*[0-9]*\.?[0-9]+\s*")


@dataclass(frozen=True)
class Comparator:
    """How a number stands to a bound where a condition holds.

    Attributes:
        words: "above".
        holds: of the number and the bound.
        end: the end of the 95 % interval that is compared, so that all of it lies beyond; "" for the estimate itself.
    """

    words: str
    holds: Callable[[float, float], bool]
    end: str = ""


COMPARATORS: Mapping[str, Comparator] = {
    ">": Comparator("above", operator.gt),
    ">=": Comparator("not below", operator.ge),
    "<": Comparator("below", operator.lt),
    "<=": Comparator("not above", operator.le),
    ">>": Comparator("above", operator.gt, "low"),
    "<<": Comparator("below", operator.lt, "high"),
}


@dataclass(frozen=True)
class Layers:
    """Which layers a condition is about, of a model whose depth is not known yet.

    Attributes:
        text: `-1`, `0-5,7`, `12-L`, `0.2-0.8`.
        ranges: the ends of each part, where the text has no fractions of the depth.
    """

    text: str
    ranges: tuple[tuple[str, str], ...] = ()

    def of(self, total: int) -> frozenset[int]:
        """The layers of a model of `total` blocks: -1 the embedding, 0…L-1 the blocks, L the final norm or the head.

        Raises:
            MidblockError: a layer that the model does not have, or a range without one.
        """
        if not self.ranges:
            return frozenset(LayerPlan.parse(self.text, total).blocks)
        found: set[int] = set()
        for ends in self.ranges:
            first, last = (total if end == "L" else int(end) for end in ends)
            if max(first, last) > total:
                what = f"[{shown(self.text)[1:-1]}] names layer {max(first, last)}; the model has -1 to {total}"
                raise MidblockError(what, hint="-1 is the embedding, L the final norm or the head")
            if last < first:
                raise MidblockError(f"[{shown(self.text)[1:-1]}] names no layer: {first} comes after {last}")
            found.update(range(first, last + 1))
        return frozenset(found)


@dataclass(frozen=True)
class Condition:
    """What one condition says.

    Attributes:
        text: as it was written.
        metric: a name of the LayerTable, suffixes included.
        comparator: a key of `COMPARATORS`.
        module: "" for all.
        layers: None for all that were measured.
        model: "" for every tuned model.
    """

    text: str
    metric: str
    comparator: str
    bound: float
    module: str = ""
    layers: Layers | None = None
    model: str = ""

    @property
    def compares(self) -> Comparator:
        return COMPARATORS[self.comparator]

    @property
    def asks_evidence(self) -> bool:
        """Whether the whole interval must lie beyond the bound, not the estimate alone."""
        return bool(self.compares.end)

    def holds(self, value: float, low: float, high: float) -> bool | None:
        """Whether an estimate and its interval are what the condition says; None where that is not defined."""
        number = {"": value, "low": low, "high": high}[self.compares.end]
        if math.isnan(value) or math.isnan(number):
            return None
        return self.compares.holds(number, self.bound)


def read_conditions(text: str) -> tuple[Condition, ...]:
    """Read conditions, comma-separated.

    Raises:
        MidblockError: one of them has another form, a number that is none, or there is none.
    """
    if len(text) > LONGEST:
        raise MidblockError(f"the conditions have {len(text):,} letters", hint=f"{LONGEST:,} are read")
    return tuple(_read(part) for part in _parts(text))


def _parts(text: str) -> Iterator[str]:
    """The text, parted at the commas that stand in no brackets and no quotes."""
    start, inside, quoted, escaped = 0, False, False, False
    for place, letter in enumerate(text):
        if quoted:
            quoted = escaped or letter != '"'
            escaped = letter == "\\" and not escaped
        elif letter == '"':
            quoted = True
        elif letter in "[]":
            inside = letter == "["
        elif letter == "," and not inside:
            yield text[start:place]
            start = place + 1
    yield text[start:]


def _read(text: str) -> Condition:
    match = CONDITION.fullmatch(text)
    if match is None:
        raise MidblockError(f"cannot read the condition {shown(text.strip())}", hint=FORM)
    bound = float(match["bound"])
    if not math.isfinite(bound):
        raise MidblockError(f"the condition {shown(text.strip())} has a number beyond all bounds", hint=FORM)
    layers = None if match["layers"] is None else _layers(match["layers"], text)
    model = _model(match["model"] or "", text)
    return Condition(text.strip(), match["metric"], match["comparator"], bound, match["module"] or "", layers, model)


def _layers(written: str, text: str) -> Layers:
    if "." in written and FRACTIONS.fullmatch(written):
        return Layers(written.strip())
    found = [LAYERS.fullmatch(part) for part in written.split(",")]
    ranges = tuple((match["first"], match["last"] or match["first"]) for match in found if match)
    if len(ranges) < len(found):
        what = f"cannot read the layers of the condition {shown(text.strip())}"
        raise MidblockError(what, hint="write them like [0-5], [-1,3,12-L] or [0.2-0.8]; -1 the embedding, L the last")
    return Layers(written.strip(), ranges)


def _model(written: str, text: str) -> str:
    """A model's name; between double quotes, as JSON has it, where it holds letters that mean something here."""
    if not written.startswith('"'):
        return written
    try:
        return str(json.loads(written))
    except ValueError as error:
        what = f"cannot read the model's name in the condition {shown(text.strip())}"
        raise MidblockError(what, hint='write it like @"sft, v2"') from error
