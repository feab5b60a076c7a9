"""The front of a repair: how much of the gain blends keep and how much they forget, for three families of alphas.

Uniform: one α for all blocks. Linear, as LiNeS scales: α rises with depth to its largest. By depth: every segment
begins at 1, and the step down that gives back most for what it costs is taken, again and again; what is given back is
counted as a share of what was forgotten, what it costs as a share of the gain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from midblock.base import MidblockError
from midblock.evaluation import TokenMean

Alphas = tuple[float, ...]
Measure = Callable[[Alphas], tuple[TokenMean, TokenMean]]

UNIFORM, LINEAR, BY_DEPTH = "uniform", "linear", "by depth"
STEPS = 10  # of uniform alphas
STARTS, ENDS = (
    (0.0, 0.25, 0.5, 0.75),
    (1.0, 0.75, 0.5),
)  # of linear ones: the share at the lowest block, and the largest
FAR = 0.5  # of what is to be kept: the descent ends where less of the gain is left


@dataclass(frozen=True, eq=False)
class Point:
    """One blend, measured.

    Attributes:
        family: of its alphas.
        alphas: one a block.
        task, general: −ln p of the answers, nats per token.
    """

    family: str
    alphas: Alphas
    task: TokenMean
    general: TokenMean


@dataclass(eq=False)
class Front:
    """Blends of one pair, measured on one pair of sets.

    Attributes:
        measure: gives −ln p on the task's and on the general set; asked once for each list of alphas.
        blocks: L.
        points: in the order in which they were measured.
    """

    measure: Measure
    blocks: int
    points: list[Point] = field(default_factory=list)
    known: dict[Alphas, tuple[TokenMean, TokenMean]] = field(default_factory=dict)

    def point(self, family: str, alphas: Iterable[float]) -> Point:
        """Measure a blend."""
        key = tuple(round(alpha, 12) for alpha in alphas)
        if key not in self.known:
            self.known[key] = self.measure(key)
        found = Point(family, key, *self.known[key])
        self.points.append(found)
        return found

    def ends(self) -> tuple[Point, Point]:
        """The base and the tuned model.

        Raises:
            MidblockError: tuning did not help on the task's set, so there is no gain to keep.
        """
        base, tuned = (self.point(UNIFORM, (alpha,) * self.blocks) for alpha in (0.0, 1.0))
        if not tuned.task.value < base.task.value:
            what = (
                f"−ln p of the task's answers is {base.task.value:.3f} before tuning and {tuned.task.value:.3f} after"
            )
            raise MidblockError(f"{what}: there is no gain to keep", hint="give the data that was tuned on with --data")
        return base, tuned

    def uniform(self) -> None:
        """α from 0 to 1."""
        for step in range(1, STEPS):
            self.point(UNIFORM, (step / STEPS,) * self.blocks)

    def linear(self) -> None:
        """α rising with depth from a share of its largest."""
        last = max(1, self.blocks - 1)
        for end in ENDS:
            for start in STARTS:
                self.point(LINEAR, (end * (start + (1 - start) * block / last) for block in range(self.blocks)))

    def descend(self, segments: int, grid: int, keep: float) -> None:
        """α by depth, from 1 downwards.

        Args:
            segments: depth segments with an α of their own.
            grid: steps from 1 to 0.
            keep: the descent ends where the share of the gain is far below that.
        """
        base, tuned = self.points[0], self.points[1]
        segments = min(segments, self.blocks)
        levels, here = [grid] * segments, Point(BY_DEPTH, tuned.alphas, tuned.task, tuned.general)
        self.points.append(here)
        gain = base.task.value - tuned.task.value
        while any(levels) and base.task.value - here.task.value >= FAR * keep * gain:
            tried = []
            for segment in (place for place in range(segments) if levels[place]):
                lower = [level - (place == segment) for place, level in enumerate(levels)]
                made = self.point(BY_DEPTH, self._spread(lower, grid))
                back = (here.general.value - made.general.value) / self.forgotten
                tried.append((back - (made.task.value - here.task.value) / gain, lower, made))
            _, levels, here = max(tried, key=lambda each: each[0])

    def _spread(self, levels: Sequence[int], grid: int) -> list[float]:
        return [levels[block * len(levels) // self.blocks] / grid for block in range(self.blocks)]

    def chosen(self, family: str, keep: float) -> Point:
        """Of a family, among the points that keep so much of the gain, the one with most gain less forgetting.

        Both count as shares of the tuned model's; the tuned model itself is in every family.
        """
        base, tuned = self.points[0], self.points[1]
        gain = base.task.value - tuned.task.value
        wanted = base.task.value - keep * gain
        able = [each for each in self.points if each.family == family and each.task.value <= wanted] or [tuned]
        return min(able, key=lambda each: each.general.value / self.forgotten + each.task.value / gain)

    @property
    def forgotten(self) -> float:
        """−ln p that the tuned model has lost on the general set; a millionth where it has lost none."""
        return max(self.points[1].general.value - self.points[0].general.value, 1e-6)

    def records(self) -> list[dict[str, Any]]:
        """Every point once, for a table and a figure: gain and forgetting in nats per token."""
        base = self.points[0]
        return [
            {
                "family": each.family,
                "alphas": list(each.alphas),
                "gain": base.task.value - each.task.value,
                "forgotten": each.general.value - base.general.value,
            }
            for each in {(each.family, each.alphas): each for each in self.points}.values()
        ]
