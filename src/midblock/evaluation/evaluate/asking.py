"""Asking: every model is asked every task, a round of items at a time.

Rounds are the same in a run that is resumed, so that batches hold the same items and outputs are the same to the
letter. A round is long enough for four full batches; its items are much the same in length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from midblock.base import MidblockError, Progress
from midblock.base.progress import Advance
from midblock.evaluation.task import SHARE, Item, Scored, Subject, Task, TaskSettings

LEAST, BATCHES = 64, 4  # items and batches in a round


def rounds_of(task: Task, settings: TaskSettings) -> list[tuple[Item, ...]]:
    """A task's items in rounds, the longest first, so that what does not fit shows at once."""
    if task.at_once:
        return [task.items]
    size = max(LEAST, BATCHES * settings.batch_tokens // settings.max_new_tokens)
    ordered = sorted(task.items, key=lambda item: (-len(item.example.prompt), item.id))
    return [tuple(ordered[start : start + size]) for start in range(0, len(ordered), size)]


def ask(
    subject: Subject, task: Task, items: Sequence[Item], settings: TaskSettings, progress: Progress
) -> list[dict[str, Any]]:
    """One round: each item's score, as plain values.

    Raises:
        MidblockError: the task gave no score, two scores or no number for an item.
    """
    found: dict[str, Scored] = {}
    for scored in task.run(subject, items, settings, progress):
        if scored.item in found or not _usable(task, scored):
            what = "two scores" if scored.item in found else f"the score {scored.value} (weight {scored.weight})"
            raise MidblockError(f"{task.name} gives {subject.name} {what} for the item {scored.item}")
        found[scored.item] = scored
    if missing := [item.id for item in items if item.id not in found]:
        raise MidblockError(f"{task.name} gives {subject.name} no score for the item {missing[0]}")
    return [asdict(found[item.id]) for item in items]


def _usable(task: Task, scored: Scored) -> bool:
    """Whether a score is a number; of a share one that is 0 or 1 and counts once."""
    if task.kind == SHARE:
        return scored.value in (0.0, 1.0) and scored.weight == 1.0
    return math.isfinite(scored.value) and scored.weight > 0


@dataclass
class Within:
    """Progress of a piece of work, told as a part of all of it, whatever phases the piece has.

    Attributes:
        advance: hears of the whole.
        left: how much of the whole the piece still is.
    """

    advance: Advance
    left: float

    def phase(self, title: str, total: float) -> Advance:
        share = self.left
        return lambda amount: self._tell(share * amount / total if total else 0.0)

    def finish(self) -> None:
        """Tell of what no phase told."""
        self._tell(self.left)

    def _tell(self, amount: float) -> None:
        amount = min(amount, self.left)
        self.left -= amount
        self.advance(amount)
