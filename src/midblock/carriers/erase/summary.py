"""What erasing found, in the numbers of summary.json and in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from midblock.base import Estimate
from midblock.carriers.erase.cells import Cell
from midblock.carriers.erase.samples import TEST
from midblock.carriers.erase.settings import EraseSettings
from midblock.carriers.erase.verdict import UNSAID, Judged, claim, reach


def summarize(
    settings: EraseSettings,
    cells: Sequence[Cell],
    models: Mapping[str, Mapping[str, Any]],
    records: Sequence[Mapping[str, Any]],
    relearning: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Build `summary.json`.

    Args:
        cells: in the order they were trained; the first is the one that the run is about.
        models: what base and tuned models do without a soft prompt, by name, the carrier's model first of the tuned.
        records: of the cells, with `Judged` for the effects on behaviour.
        relearning: how soon the behaviour came back, the base first; empty where that was not asked.
    """
    first = records[0]
    like: Judged = first["judged"][TEST]
    unlike = {name: each for name, each in first["judged"].items() if name != TEST}
    verdicts = {record["name"]: record["judged"][TEST].verdict for record in records}
    said = [reach(like, unlike), *(str(each["said"]) for each in relearning[1:2])]
    return {
        "headline": _headline(settings.named, first, like),
        "said": [each for each in said if each],
        "claim": claim(*_by_model(cells, verdicts, tuple(models)[1:])) if settings.grid else None,
        "behaviour": settings.named,
        "models": [],
        "plain": list(models.values()),
        "cells": [_plain(record) for record in records],
        "relearning": list(relearning),
    }


def _by_model(
    cells: Sequence[Cell], verdicts: Mapping[str, str], tuned: Sequence[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Verdicts by channels in the carrier's model, and in plain SFT; of that none where it was not given."""
    found: list[dict[str, str]] = [{}, {}]
    for place, name in enumerate(tuned[:2]):
        found[place] = {cell.channels: verdicts[cell.name] for cell in cells if cell.model == name}
    return found[0], found[1]


def _headline(behaviour: str, record: Mapping[str, Any], like: Judged) -> str:
    start = (
        f"With a soft prompt ({record['title']}) the rate of {behaviour} goes from {_percent(like.before)} to "
        f"{_percent(like.after)} on held-out prompts (change {_points(like.change)} points"
    )
    random = record["nulls"]["random"].after
    verdict = "the evidence does not say whether it works" if like.verdict == UNSAID else f"it {like.verdict}"
    return f"{start}; random prompt: {100 * random.value:.0f} %): {verdict}."


def _percent(found: Estimate) -> str:
    return f"{100 * found.value:.0f} % [{100 * found.low:.0f}, {100 * found.high:.0f}]"


def _points(found: Estimate) -> str:
    return f"{100 * found.value:+.0f} [{100 * found.low:+.0f}, {100 * found.high:+.0f}]".replace("-", "−")


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """A cell's record in plain values, with its verdict."""
    judged = {name: _effect(each) for name, each in record["judged"].items()}
    nulls = {name: _effect(each) for name, each in record["nulls"].items()}
    return {**record, "judged": judged, "nulls": nulls, "verdict": record["judged"][TEST].verdict}


def _effect(found: Judged) -> dict[str, Any]:
    against = found.against_random
    return {
        "before": found.before.as_record(),
        "after": found.after.as_record(),
        "change": found.change.as_record(),
        "p": found.p,
        "against_random": None if against is None else against.as_record(),
    }
