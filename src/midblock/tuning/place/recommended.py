"""The plan that `midblock recommend` wrote down, read back and checked: its file is anybody's to change."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from midblock.base import LayerPlan, MidblockError
from midblock.base.json_file import read_object

RECOMMENDED = "recommendation.json"


def recommended(folder: Path, total: int) -> LayerPlan:
    """The plan of a recommendation, ranks included; its fallback where the evidence said nothing, as it is named there.

    Args:
        total: L of the model to tune.

    Raises:
        MidblockError: a broken file, or another depth.
    """
    file = folder / RECOMMENDED
    found = read_object(file)
    depth, blocks, ranks = found.get("total"), found.get("blocks"), found.get("ranks")
    if type(depth) is int and depth != total:
        raise MidblockError(f"{folder} is about a model of {depth} blocks; this one has {total}")
    if type(depth) is not int or not _blocks(blocks, total) or not _ranks(ranks, blocks):
        raise MidblockError(f"{file} is broken: it holds no plan", hint="midblock recommend … --overwrite")
    assert isinstance(blocks, list)  # noqa: S101 - as checked
    return LayerPlan(total, tuple(blocks), None if ranks is None else tuple(ranks))


def _blocks(blocks: Any, total: int) -> bool:
    """Whether these are block indices, ascending."""
    if not isinstance(blocks, list) or not blocks or not all(type(block) is int for block in blocks):
        return False
    return blocks[0] >= 0 and blocks[-1] < total and all(one < other for one, other in pairwise(blocks))


def _ranks(ranks: Any, blocks: Any) -> bool:
    """Whether there is a rank above 0 for each block, or none at all."""
    if ranks is None:
        return True
    return isinstance(ranks, list) and len(ranks) == len(blocks) and all(type(r) is int and r > 0 for r in ranks)
