"""The key figures under the first figure: a handful of numbers a reader would quote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from midblock.base.states import MEASURED, STATES
from midblock.metrics.headline_curve import headline_curve
from midblock.report.page.island import depth_number, thirds_of
from midblock.report.read.reading import Run

if TYPE_CHECKING:
    import pandas as pd

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
Reader = Callable[[Run, str], "Number | Thirds | None"]


@dataclass(frozen=True)
class Number:
    """A number worth quoting, and what belongs beside it in small type."""

    text: str
    aside: str = ""


@dataclass(frozen=True)
class Thirds:
    """Shares of a change in the lower, middle and upper third of the depth."""

    shares: tuple[float, float, float]
    center: float | None


@dataclass(frozen=True)
class Fact:
    """One tile: what it is, and one answer for each tuned model that has one."""

    label: str
    note: str
    answers: tuple[tuple[str, Number | Thirds], ...]


def facts_of(run: Run) -> list[Fact]:
    """The tiles that this run's numbers allow."""
    facts = []
    for label, note, reader in READERS:
        answers = [(name, answer) for name in run.tuned if (answer := reader(run, name)) is not None]
        if answers:
            facts.append(Fact(label, note, tuple(answers)))
    return facts


def number(value: float, digits: int = 3) -> str:
    """Write a number for people: enough digits to tell it from 1, a real minus sign."""
    if not np.isfinite(value):
        return "–"
    if value != 0 and (abs(value) < 1e-4 or abs(value) >= 1e6):
        mantissa, exponent = f"{value:.{digits - 2}e}".split("e")
        return f"{mantissa}×10".replace("-", "−") + str(int(exponent)).translate(SUPERSCRIPTS)
    text = f"{value:.4f}" if 0.99 < abs(value) < 1 else f"{value:.{digits}g}"
    return text.replace("-", "−")


def _blocks(run: Run, metric: str, model: str, module: str = "residual") -> pd.DataFrame:
    curve = headline_curve(run.table, metric, model, module)
    return curve[np.isfinite(curve.value) & (curve.layer >= 0) & (curve.layer < run.blocks)]


def _peak(metric: str, module: str, kind: str) -> Reader:
    """The block that the summary names, so that tile and headline agree; without one, the curve's highest."""

    def read(run: Run, model: str) -> Number | None:
        curve = _blocks(run, metric, model, module)
        if curve.empty or not (curve.value > 0).any():  # no block is where nothing changed most
            return None
        depth = run.summary_of(model).get(kind)
        named = depth.get("peak_block") if isinstance(depth, dict) else None
        place = int(np.argmax(curve.value.to_numpy()))
        if type(named) is int and (curve.layer == named).any():
            place = int(np.argmax((curve.layer == named).to_numpy()))
        row = curve.iloc[place]
        return Number(f"block {row.layer}", f"{number(row.value)} of base norm{_doubt(row)}")

    return read


def _last_similarity(run: Run, model: str) -> Number | None:
    curve = _blocks(run, "cka_debiased", model)
    return _with_interval(curve.iloc[-1]) if len(curve) and curve.layer.iloc[-1] == run.blocks - 1 else None


def _agreement(run: Run, model: str) -> Number | None:
    curve = run.table.curve("logit_agreement", model)
    curve = curve[np.isfinite(curve.value) & (curve.layer >= run.blocks - 1)]
    return _with_interval(curve.iloc[-1]) if len(curve) else None


def _with_interval(row: pd.Series) -> Number:
    interval = f"[{number(row.low)}, {number(row.high)}]" if np.isfinite(row.low) and np.isfinite(row.high) else ""
    return Number(number(row.value), (interval + _doubt(row)).removeprefix("; "))


def _doubt(row: pd.Series) -> str:
    """Why a number says less than it seems to; "" where it was measured in full."""
    return "" if row.state == MEASURED else f"; {STATES[row.state]}"


def _thirds(kind: str) -> Reader:
    def read(run: Run, model: str) -> Thirds | None:
        entry = run.summary_of(model)
        shares = thirds_of(entry, kind)
        return Thirds((shares[0], shares[1], shares[2]), depth_number(entry, kind)) if shares else None

    return read


def _divergence(metric: str) -> Reader:
    def read(run: Run, model: str) -> Number | None:
        both = [run.table.curve(name, model) for name in (metric, f"{metric}_reverse")]
        if not np.isfinite(both[0].value).any():
            return None
        found = _with_interval(both[0].iloc[-1])
        back = f"; KL(tuned‖base) {number(both[1].value.iloc[-1])}" if len(both[1]) else ""
        return Number(f"{found.text} nats", found.aside + back)

    return read


READERS: tuple[tuple[str, str, Reader], ...] = (
    ("Own change by third", "lower · middle · upper, of what blocks' own tuning does", _thirds("own_depth")),
    ("Weight change by third", "lower · middle · upper, of the blocks' relative change", _thirds("weight_depth")),
    ("Tuning acts most in", "largest change by a block's own tuning", _peak("change_own", "residual", "own_depth")),
    ("Weights moved most in", "largest change of a whole block", _peak("delta_rel", "block", "weight_depth")),
    (
        "Most change carried across",
        "largest growth or turn of the states' change, by acting or reacting",
        _peak("change_increment", "residual", "representation_depth"),
    ),
    ("Similarity after the last block", "debiased CKA, 95 % interval", _last_similarity),
    (
        "KL on the answers",
        "KL(base‖tuned) per token; others found it to go with forgetting",
        _divergence("kl_answers"),
    ),
    ("KL on general text", "KL(base‖tuned) per token, on texts tuning was not about", _divergence("kl_general")),
    ("Same next token at the output", "share of positions, 95 % interval", _agreement),
)
