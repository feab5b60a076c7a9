"""Verdicts of a gate: what became of each condition, in words, as JSON and as JUnit's XML, which CI systems read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from midblock.analysis.gate.conditions import Condition
from midblock.base import replace_atomically, write_json
from midblock.base.quoting import xml_text

PASSED, FAILED, NOT_DEFINED, NOT_MEASURED = "passed", "failed", "not defined", "not measured"
NAN = math.nan


@dataclass(frozen=True)
class Place:
    """One number of the LayerTable, and where it stands; NaN where it is not defined."""

    model: str
    layer: int
    metric: str
    module: str = "residual"
    dataset: str = ""
    value: float = NAN
    low: float = NAN
    high: float = NAN
    n: int = 0

    @classmethod
    def of(cls, row: Any) -> Place:
        """Of a row of the table."""
        numbers = (float(row.value), float(row.low), float(row.high), int(row.n))
        return cls(str(row.model), int(row.layer), str(row.metric), str(row.module), str(row.dataset), *numbers)

    def __str__(self) -> str:
        part = "" if self.module == "residual" else f" ({self.module})"
        return f"{self.metric} of {self.model} at layer {self.layer}{part}"

    def number(self, condition: Condition) -> float:
        """What the condition compares."""
        return {"": self.value, "low": self.low, "high": self.high}[condition.compares.end]

    def as_record(self) -> dict[str, Any]:
        """For JSON, which has no NaN and no infinity."""
        found = asdict(self)
        return {
            key: None if isinstance(each, float) and not math.isfinite(each) else each for key, each in found.items()
        }


@dataclass(frozen=True)
class Verdict:
    """What became of one condition.

    Attributes:
        failing: where it holds, which it must not; what lies furthest beyond the bound first.
        undefined: where the number that it compares is not defined.
        passing: where it does not hold; what comes nearest to it first.
        unmeasured: why nothing can be said; "" where something can.
    """

    condition: Condition
    failing: tuple[Place, ...] = ()
    undefined: tuple[Place, ...] = ()
    passing: tuple[Place, ...] = ()
    unmeasured: str = ""

    @property
    def state(self) -> str:
        if self.unmeasured:
            return NOT_MEASURED
        return FAILED if self.failing else NOT_DEFINED if self.undefined else PASSED

    @property
    def line(self) -> str:
        """It in one line: where, the value, the bound."""
        text = self.condition.text
        if self.unmeasured:
            return f"{text}: {self.unmeasured}"
        if self.failing:
            return f"{text}: {self._failing(self.failing[0])}{_more(self.failing)}"
        if self.undefined:
            what = (
                "the interval of " if self.condition.asks_evidence and not math.isnan(self.undefined[0].value) else ""
            )
            return f"{text}: {what}{self.undefined[0]} is not defined, so nothing vouches for it{_more(self.undefined)}"
        nearest = self.passing[0]
        return f"{text}: passed at {len(self.passing)} place(s); nearest {nearest}, {nearest.value:.4g}"

    def _failing(self, place: Place) -> str:
        compares, bound = self.condition.compares, f"{self.condition.bound:g}"
        if self.condition.asks_evidence:
            low, high = (_told(end, self.condition.bound) for end in (place.low, place.high))
            said = f"{place} is {place.value:.4g}, all of its interval ({low} to {high}) {compares.words} {bound}"
        else:
            said = f"{place} is {_told(place.value, self.condition.bound)}, {compares.words} {bound}"
        return said

    def as_record(self) -> dict[str, Any]:
        """What `gate.json` says of it."""
        asked = self.condition
        nearest = self.passing[0].as_record() if self.passing else None
        return {
            "condition": asked.text,
            "metric": asked.metric,
            "module": asked.module or None,
            "layers": asked.layers.text if asked.layers else None,
            "model": asked.model or None,
            "comparator": asked.comparator,
            "bound": asked.bound,
            "state": self.state,
            "told": self.line,
            "compared": len(self.failing) + len(self.passing),
            "failing": [place.as_record() for place in self.failing],
            "undefined": [place.as_record() for place in self.undefined],
            "nearest": nearest,
        }


@dataclass(frozen=True)
class Gate:
    """All verdicts, in the order of the conditions."""

    verdicts: tuple[Verdict, ...]

    @property
    def passed(self) -> bool:
        return all(verdict.state == PASSED for verdict in self.verdicts)

    @property
    def failures(self) -> list[str]:
        """A line for each condition that holds, or of which the run does not say whether it does."""
        return [verdict.line for verdict in self.verdicts if verdict.state in (FAILED, NOT_DEFINED)]

    @property
    def errors(self) -> list[str]:
        """A line for each condition about what was not measured."""
        return [verdict.line for verdict in self.verdicts if verdict.state == NOT_MEASURED]

    def as_record(self) -> dict[str, Any]:
        """What `gate.json` holds."""
        return {"passed": self.passed, "conditions": [verdict.as_record() for verdict in self.verdicts]}

    def write(self, folder: Path) -> None:
        """Write `gate.json` and `gate.xml`."""
        write_json(folder / "gate.json", self.as_record())
        with replace_atomically(folder / "gate.xml") as path:
            path.write_bytes(self.as_junit())

    def as_junit(self) -> bytes:
        """The verdicts as JUnit's XML: a test case a condition."""
        counts = {"tests": len(self.verdicts), "failures": len(self.failures), "errors": len(self.errors)}
        numbers = {name: str(count) for name, count in counts.items()}
        suites = ElementTree.Element("testsuites", {"name": "midblock", **numbers})
        suite = ElementTree.SubElement(suites, "testsuite", {"name": "midblock gate", **numbers, "skipped": "0"})
        for verdict in self.verdicts:
            names = {"classname": "midblock.gate", "name": xml_text(verdict.condition.text)}
            case = ElementTree.SubElement(suite, "testcase", names)
            if verdict.state != PASSED:
                kind = "error" if verdict.state == NOT_MEASURED else "failure"
                told = {"message": xml_text(verdict.line), "type": verdict.state}
                ElementTree.SubElement(case, kind, told).text = xml_text(_listed(verdict))
        ElementTree.indent(suites)
        return ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True) + b"\n"


def _listed(verdict: Verdict) -> str:
    """Every place that does not pass."""
    found = [f"{place}: {place.value:.6g} ({place.low:.6g} to {place.high:.6g})" for place in verdict.failing]
    return "; ".join([*found, *(f"{place}: not defined" for place in verdict.undefined)]) or verdict.line


def _more(places: Sequence[Place]) -> str:
    return f"; the same at {len(places) - 1} more place(s)" if len(places) > 1 else ""


def _told(number: float, bound: float) -> str:
    """A number with as many digits as tell it from the bound."""
    short = f"{number:.4g}"
    return short if (float(short) > bound, float(short) < bound) == (number > bound, number < bound) else repr(number)
