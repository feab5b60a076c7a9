"""Clusters: which prompts are variants of one question, or repeat one another, and are resampled together.

Variants say much the same, and repeats the very same; resampled one by one they would make an interval as narrow as if
each were new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Float64, Int64

from midblock.base.plural import counted


@dataclass(frozen=True, eq=False)
class Clusters:
    """N prompts in M clusters.

    Attributes:
        numbers: of each prompt its cluster's number, counted from 0 in the order of appearance.
        count: M.
    """

    numbers: Int64[np.ndarray, "N"]
    count: int

    @classmethod
    def of(cls, questions: Sequence[str], repeats: Mapping[int, int] = MappingProxyType({})) -> Clusters | None:
        """By what prompts share, directly or through others; None where no two share anything.

        Args:
            questions: the question that each prompt is a variant of, "" where it is none.
            repeats: for each prompt that repeats an earlier one: that one, by place.
        """
        named: dict[str, int] = {}
        first = [named.setdefault(question, place) if question else place for place, question in enumerate(questions)]
        for later, earlier in repeats.items():
            both = sorted((_first_of(first, later), _first_of(first, earlier)))
            first[both[1]] = both[0]
        known: dict[int, int] = {}
        numbers = [known.setdefault(_first_of(first, place), len(known)) for place in range(len(first))]
        return cls(np.array(numbers), len(known)) if len(known) < len(numbers) else None

    def note(self, what: str) -> str:
        """What a reader must know.

        Args:
            what: what the prompts are called.
        """
        questions = counted(self.count, "question")
        return (
            f"The {len(self.numbers)} {what} are variants or repeats of {questions}, and intervals "
            f"resample questions: where variants are all alike, they are worth {self.effective:.0f} {what}."
        )

    @property
    def effective(self) -> float:
        """How many prompts these are worth if variants of a question are all alike (Kish)."""
        sizes = np.bincount(self.numbers)
        return float(sizes.sum() ** 2 / np.square(sizes).sum())

    def take(self, places: Int64[np.ndarray, "n"]) -> Clusters | None:
        """Those of some of the prompts, None where no two of them share a question."""
        _, numbers = np.unique(self.numbers[places], return_inverse=True)
        count = int(numbers.max(initial=-1)) + 1
        return Clusters(numbers.astype(np.int64), count) if count < len(numbers) else None

    def sums(self, values: Float64[np.ndarray, "N C"]) -> Float64[np.ndarray, "M C"]:
        """Sums over each cluster's prompts."""
        total = np.zeros((self.count, values.shape[1]))
        np.add.at(total, self.numbers, values)
        return total


def _first_of(first: Sequence[int], place: int) -> int:
    """The first prompt of a prompt's cluster, given for each prompt an earlier one of it, or itself."""
    while first[place] != place:
        place = first[place]
    return place
