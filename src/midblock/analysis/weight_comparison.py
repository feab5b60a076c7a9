"""Two models compared tensor by tensor: what changed, in which block, in which projection; no model is built.

Tensors come in the order they lie on disk, one at a time, each by its name in memory with any adapter folded in
(`checkpoints.effective`). A tensor that both read from the same place is unchanged without a look; the change of one
that only has an adapter's factors on top is read off the factors (norms and spectra from r × r matrices), and only
rotations need the dense sum. Everything else is W' − W, entry by entry: two passes over both files. Described in
docs/metrics.md, "Weights".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from midblock.analysis.mixtures import expert_of
from midblock.analysis.weight_notes import coded_notes, merged_notes, precision_note
from midblock.analysis.weight_totals import GROUPS, Compared, WeightTotals
from midblock.base import LayerRow, MidblockError
from midblock.checkpoints import BUFFERS, EffectiveTensors, Piece, Source, Variant, check_readable, unread_note
from midblock.checkpoints.roles import other_modality
from midblock.metrics.top_singular import EXACT_UP_TO
from midblock.runs.sharing import shared, shared_rows

NAMED = 3  # tensors that a note names


@dataclass(frozen=True)
class WeightComparison:
    """Comparison of one tuned model's weights with the base's.

    Attributes:
        base, tuned: the models.
        blocks: L.
        wanted: names of metrics.
        layers: -1…L, of which rows are wanted.
        rank: k of the singular spaces that are followed.
        exact: compute whole spectra of any width.
        notes: what a reader must know: tensors in one checkpoint only, vocabularies resized, metrics left out.
    """

    base: Variant
    tuned: Variant
    blocks: int
    wanted: frozenset[str]
    layers: frozenset[int]
    rank: int
    exact: bool = False
    notes: list[str] = field(default_factory=list)

    def rows(self, advance: Callable[[float], None] = lambda entries: None) -> Iterator[LayerRow]:
        """Read every tensor once and yield the table's rows.

        Args:
            advance: hears how many entries each tensor held.

        Raises:
            MidblockError: tensors of different shape, NaN or Inf (the tensor is named), codes that are no weights, or
                nothing in common.
        """
        own = frozenset(shared().share(sorted(self.layers)))
        totals = WeightTotals(self.tuned.name, self.blocks, self.wanted, self.rank, self.exact)
        notes: list[str] = []
        rows = shared_rows(partial(self._own_rows, own, totals, notes, advance))
        yield from (LayerRow(**row) for _, _, row in sorted(rows, key=lambda each: each[:2]))
        said = [*self.notes]
        self.notes.extend(note for note in dict.fromkeys(shared_rows(lambda: notes)) if note not in said)
        if too_wide := shared_rows(lambda: totals.too_wide):
            self.notes.append(
                f"delta_effective_rank is left out for {len(too_wide)} tensors whose smaller side is above "
                f"{EXACT_UP_TO}, and their leading singular vectors are iterated until they stand; --exact-spectra "
                "computes them in full."
            )
        if unsettled := sorted(shared_rows(lambda: totals.unsettled), reverse=True):
            self.notes.append(
                f"The leading singular values or spaces of {len(unsettled)} tensors did not come to stand: errors of "
                f"up to {unsettled[0]:.1e} remain; --exact-spectra computes them in full."
            )

    def _own_rows(
        self, layers: frozenset[int], totals: WeightTotals, notes: list[str], advance: Callable[[float], None]
    ) -> list[tuple[int, int, dict[str, Any]]]:
        """The rows of some layers, as plain values, each behind its place: kind, and where it lies on disk."""
        with self.base.tensors() as ours, self.tuned.tensors() as theirs:
            check_readable(ours)
            check_readable(theirs)
            self._note_files(ours, theirs, notes)
            notes += merged_notes(self.base, self.tuned)
            merged = self.base.merged_by_peft or self.tuned.merged_by_peft
            _Reading(ours, theirs, layers, totals, notes, merged).read(advance)
            parts = (ours.projection(piece.name) for piece in ours.stored_pieces)
            places = list(dict.fromkeys(self._place(each.layer, each.role) for each in parts))
        order = {place: number for number, place in enumerate(places)}
        return [
            (_kind(row), order.get(self._place(row.layer, row.module), len(order)), asdict(row))
            for row in totals.rows()
        ]

    def _place(self, layer: int, role: str) -> tuple[int, str]:
        """What lies together on disk: a block, or one part of what is around them."""
        return (layer, "" if 0 <= layer < self.blocks else role)

    def _note_files(self, ours: EffectiveTensors, theirs: EffectiveTensors, notes: list[str]) -> None:
        """Say what the files hold beside weights; of the base once, however many models are compared with it."""
        said = any(f" in the files of {ours.name} " in note for note in self.notes)
        found = [*unread_note(*(() if said else (ours,)), theirs), *coded_notes(ours, theirs)]
        notes.extend(note for note in found if note not in self.notes)


def _kind(row: LayerRow) -> int:
    """Of a projection, of one expert, or of several parts together: in this order a table has them."""
    return 2 if row.module in ("block", *GROUPS) else int(expert_of(row.module) is not None)


@dataclass(frozen=True)
class _Reading:
    """One walk over both models' tensors, which fills the totals.

    Attributes:
        merged: PEFT merged an adapter of one of them, whose weights are in memory.
    """

    ours: EffectiveTensors
    theirs: EffectiveTensors
    layers: frozenset[int]
    totals: WeightTotals
    notes: list[str]
    merged: bool = False

    def read(self, advance: Callable[[float], None]) -> None:
        """Take every tensor that both have, in the base's order."""
        ours, theirs = self.ours, self.theirs
        shared = set(in_both(ours, theirs, self.notes))
        untied = not theirs.tied and theirs.has_head and (ours.tied or self._base_untied)
        for piece in ours.stored_pieces:
            if piece.name == ours.embedding and untied and ours.blocks in self.layers:
                self._head()
            if self._wanted(piece) and piece.name in shared:
                self._take(piece)
            advance(math.prod(ours.shape(piece)))
        if theirs.tied and not ours.tied and ours.has_head:
            self.notes.append(f"{theirs.name} has no head of its own, it is tied: the base's is not compared.")

    def _wanted(self, piece: Piece) -> bool:
        is_head = piece.name == self.ours.head
        layer = self.ours.projection(piece.name).layer
        left_out = piece.unread or piece.opaque is not None or piece.stored.endswith(BUFFERS)
        return layer in self.layers and not left_out and not (is_head and self._tied)

    @property
    def _tied(self) -> bool:
        return self.ours.tied or self.theirs.tied

    @property
    def _base_untied(self) -> bool:
        """Whether the base has a head of its own that no file holds: an adapter untied it from the embedding."""
        return not self.ours.tied and self.ours.has_head and self.ours.head not in self.ours.by_name

    def _take(self, piece: Piece) -> None:
        what = Compared(piece.stored, self.ours.projection(piece.name), piece.region)
        before, origin = self.ours.source(piece), self.ours.origin(piece)
        if not before.stored.is_floating_point():
            kind = before.stored.dtype
            self.notes.append(f"{piece.stored} holds {kind}, not floating-point weights, and is left out.")
        elif origin is not None and origin == self._their_origin(piece):
            self.totals.add_unchanged(what, before.stored)
        else:
            self._compare(what, before, self.theirs.like(self.ours, piece), same_start=self._starts_alike(piece))

    def _head(self) -> None:
        """The head of a model that tuning untied: it began as the base's embedding, or as what that was untied to."""
        ours, theirs = self.ours, self.theirs
        start, end = ours.head_piece, theirs.head_piece
        what = Compared(theirs.head, theirs.projection(theirs.head))
        alike = theirs.head not in theirs.changes.replaced and self._same_tensor(start, end)
        self._compare(what, ours.source(start), theirs.source(end), same_start=alike)

    def _compare(self, what: Compared, before: Source, after: Source, *, same_start: bool) -> None:
        if after.changed and after.stored.ndim > 2:
            for place, (one, other) in enumerate(zip(before.matrices(), after.matrices(), strict=True)):
                self._compare(replace(what, expert=place), one, other, same_start=same_start)
            return
        delta, start = after.low_rank, before.stored
        if delta is not None and same_start and not self.totals.follows_spaces and len(what.parts(start)) == 1:
            self.totals.add_low_rank(what, start, delta)
        elif same_start and not after.changed:
            self.totals.add_unchanged(what, start)
        elif (before.changed or after.changed) and self._in_pieces(what, before, after):
            self.totals.add_in_pieces(what, before, after)
        else:
            self._note_rounding(start.dtype, after.stored.dtype)
            self.totals.add(what, *self._shared(what, before.value(), after.value()))

    def _in_pieces(self, what: Compared, before: Source, after: Source) -> bool:
        """Whether two values are compared some rows at a time: tall matrices of one role that are large."""
        start, parts = before.stored, what.parts(before.stored)
        tall = start.ndim == 2 and start.shape[0] >= start.shape[1] and start.shape == after.stored.shape
        return tall and len(parts) == 1 and what.in_pieces(next(iter(parts)), start)

    def _their_origin(self, piece: Piece) -> object:
        twin = self.theirs.twin(self.ours, piece)
        return None if twin is None else self.theirs.origin(twin)

    def _starts_alike(self, piece: Piece) -> bool:
        """Whether the tuned model's change is on top of this very tensor of the base."""
        twin = self.theirs.twin(self.ours, piece)
        return twin is not None and twin.name not in self.theirs.changes.replaced and self._same_tensor(piece, twin)

    def _same_tensor(self, piece: Piece, other: Piece) -> bool:
        origin = self.ours.origin(piece)
        return origin is not None and origin == self.theirs.start(other)

    def _note_rounding(self, ours: torch.dtype, theirs: torch.dtype) -> None:
        """Say once that base and tuned are stored in different precision, and what that alone does."""
        plain = not any(each.changes.names or each.coded for each in (self.ours, self.theirs)) and not self.merged
        if ours == theirs or not plain or not (ours.is_floating_point and theirs.is_floating_point):
            return
        if not any(each.startswith("The base is ") and f", {self.theirs.name} " in each for each in self.notes):
            self.notes.append(precision_note(self.theirs.name, ours, theirs))

    def _shared(self, what: Compared, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """The rows that both have, where a vocabulary was resized."""
        if before.shape == after.shape:
            return before, after
        if what.projection.role in ("embedding", "head") and before.shape[1:] == after.shape[1:]:
            rows = min(len(before), len(after))
            self.notes.append(
                f"{what.name} has {len(before)} rows in the base, {len(after)} in {self.theirs.name}: "
                f"the first {rows} are compared."
            )
            return before[:rows], after[:rows]
        what_differs = f"{what.name} is {list(before.shape)} in the base and {list(after.shape)} in {self.theirs.name}"
        raise MidblockError(what_differs, hint="compare models of the same architecture")


def in_both(ours: EffectiveTensors, theirs: EffectiveTensors, notes: list[str]) -> list[str]:
    """Names, in the base, of the parameters that both models have; what only one has is noted, heads apart.

    Raises:
        MidblockError: there is none in the blocks.
    """
    found = [name for name in _compared(ours) if theirs.name_of(ours, name) in theirs.by_name]
    if not any(ours.projection(name).block is not None for name in found):
        hint = f"e.g. {next(iter(ours.by_name), 'none')}, {next(iter(theirs.by_name), 'none')}"
        raise MidblockError(f"{theirs.name} and the base have no tensor of a block in common", hint=hint)
    for owner, other, title in ((ours, theirs, "the base"), (theirs, ours, theirs.name)):
        if lonely := [name for name in _compared(owner) if other.name_of(owner, name) not in other.by_name]:
            notes.append(f"Only {title} has {_listed(lonely)}: not compared.")
    for owner, title in ((ours, "the base"), (theirs, theirs.name)):
        if not owner.has_head:
            notes.append(f"The files of {title} hold no head, and its config ties none: heads are not compared.")
        if opaque := [piece for piece in owner.stored_pieces if piece.opaque]:
            kinds = ", ".join(sorted({str(piece.opaque) for piece in opaque}))
            names = _listed([piece.stored for piece in opaque])
            notes.append(f"The files of {title} store {names} by {kinds}, which is not followed: not compared.")
    return [*found, *([ours.head] if ours.has_head and theirs.has_head else [])]


def _compared(owner: EffectiveTensors) -> list[str]:
    """Parameters by name; without heads: a tied one is written by some programs and not by others."""
    left_out = {piece.name for piece in owner.stored_pieces if piece.unread or piece.opaque}
    return [name for name in owner.by_name if name not in left_out and name != owner.head]


def _listed(names: Sequence[str]) -> str:
    """Names in a few words: those of a tower by its own name."""
    towers = Counter(tower for name in names if (tower := other_modality(name)))
    single = [name for name in names if not other_modality(name)]
    parts = [f"{count} {'tensor' if count == 1 else 'tensors'} of {tower}" for tower, count in towers.items()]
    listed = ", ".join([*parts, *single[:NAMED]])
    return listed + (f" and {len(single) - NAMED} more" if len(single) > NAMED else "")


def entries_of(variant: Variant) -> int:
    """How many entries a comparison with this base reads."""
    with variant.tensors() as tensors:
        return sum(math.prod(tensors.shape(piece)) for piece in tensors.stored_pieces)
