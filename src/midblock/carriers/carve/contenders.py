"""Contenders: base, tuned model, and each carrier alone in the base and taken out of the tuned model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from torch import nn

from midblock.carriers.rivals import Rival, put_rival
from midblock.checkpoints import Carrier, apply_carrier
from midblock.runs.lending import evaluating

BASE, TUNED = "base", "tuned"
ALONE, WITHOUT = "alone", "without"
CARRIER, UNTRAINED, RANDOM = "carrier", "untrained carrier", "random"


@dataclass(frozen=True)
class Candidate:
    """A part of the change that is held against the others.

    Attributes:
        name: what tables call it ("carrier", "untrained carrier", "random 1", "pruned", "svd").
        kind: its name without the draw's number.
        carrier: its values, or a rival's.
        entries, bytes: its size as it would lie on disk.
    """

    name: str
    kind: str
    carrier: Carrier | Rival
    entries: int
    bytes: int


@dataclass(frozen=True)
class Contender:
    """A model of the table.

    Attributes:
        name: what tables call it.
        side: `alone` (in the base), `without` (taken out of the tuned model), "" for base and tuned model themselves.
        candidate: what is put in or taken out.
    """

    name: str
    side: str = ""
    candidate: Candidate | None = None

    @property
    def kind(self) -> str:
        return self.candidate.kind if self.candidate else self.name


def contenders_of(candidates: Sequence[Candidate]) -> list[Contender]:
    """Base and tuned model, then every candidate alone and taken out.

    An untrained carrier is alone only: what is taken out of the tuned model is the carrier's places, whatever it holds.
    """
    found = [Contender(BASE), Contender(TUNED)]
    for each in candidates:
        found.append(Contender(f"{each.name} alone", ALONE, each))
        if each.kind != UNTRAINED:
            found.append(Contender(f"tuned without {each.name}", WITHOUT, each))
    return found


@dataclass(frozen=True, eq=False)
class Trio:
    """The models that contenders are made of; each is the same to the bit after every one of them.

    Attributes:
        base: as it is, for what is held against its predictions.
        host: the base once more, which carriers are put into.
        tuned: which they are taken out of.
    """

    base: nn.Module
    host: nn.Module
    tuned: nn.Module

    @contextmanager
    def standing(self, contender: Contender) -> Iterator[nn.Module]:
        """The contender, as a model, while the `with` lasts."""
        candidate = contender.candidate
        model = self.tuned if contender.side == WITHOUT or contender.name == TUNED else self.host
        with self._changed(model, candidate, contender.side == WITHOUT), evaluating(model):
            yield model

    def _changed(self, model: nn.Module, candidate: Candidate | None, remove: bool) -> AbstractContextManager[object]:
        if candidate is None:
            return nullcontext()
        if isinstance(candidate.carrier, Rival):
            return put_rival(model, candidate.carrier, remove=remove)
        return apply_carrier(model, candidate.carrier, remove=remove, base=self.base if remove else None)
