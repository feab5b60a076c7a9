"""EffectiveTensors: every tensor of a model as it computes with it, by its name in memory, an adapter folded in.

Wherever weights are compared, merged or written, the question is the same: what is the value of this parameter? On disk
it may lie under another name, in pieces, without its adapter's change (low-rank, DoRA, on stacked experts, or a whole
tensor in its place), or, a tied head, not at all. This answers it, piece by piece in the order of the files, each
piece a `Source` whose change stays factored until it is needed. Cost: opening the files and the adapter; reading is one
tensor at a time, from mapped files. Sources: transformers' conversion table for the names (`stored_names`), PEFT's
layers for the changes (`adapter`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor, nn

from midblock.base import MidblockError
from midblock.checkpoints.adapter import Adapter
from midblock.checkpoints.anatomy import Anatomy
from midblock.checkpoints.checkpoint import Checkpoint
from midblock.checkpoints.low_rank import Delta
from midblock.checkpoints.model_tensors import ModelTensors
from midblock.checkpoints.pair import Variant
from midblock.checkpoints.projections import Projection
from midblock.checkpoints.skeleton import KEPT, skeleton_of
from midblock.checkpoints.source import Source
from midblock.checkpoints.stored_names import Piece, box, pieces_of
from midblock.checkpoints.tensors import TensorReader

BUFFERS = ("inv_freq", "masked_bias", ".attn.bias", ".attention.bias")
ROWS = 1 << 22  # entries computed at a time where two tensors are compared or a norm is taken

Store = TensorReader | ModelTensors


@dataclass(frozen=True)
class Changes:
    """What an adapter does to its base.

    Attributes:
        deltas: low-rank changes, by the name of the parameter, or of the tensor on disk where that is a part of one.
        magnitudes: DoRA's, by parameter.
        replaced: whole tensors put in the place of others, by parameter.
    """

    deltas: Mapping[str, Delta] = field(default_factory=dict)
    magnitudes: Mapping[str, Tensor] = field(default_factory=dict)
    replaced: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        """Names of all that is changed."""
        return frozenset({*self.deltas, *self.magnitudes, *self.replaced})


@dataclass(frozen=True)
class EffectiveTensors:
    """The tensors of one model.

    Attributes:
        name: what to call the model in messages.
        store: its files, of an adapter its base's; or the model in memory.
        anatomy: of the model, or of its skeleton.
        stored_pieces: what each tensor of the store is in memory, in the order of the store.
        changes: an adapter's.
        tied: the head is the embedding; an adapter that changes one of them unties them.
    """

    name: str
    store: Store
    anatomy: Anatomy
    stored_pieces: tuple[Piece, ...]
    changes: Changes = field(default_factory=Changes)
    tied: bool = False

    @classmethod
    def of(cls, variant: Variant) -> EffectiveTensors:
        """Open a variant's tensors: its files, or the model where it has none or its adapter is no change of tensors.

        Raises:
            MidblockError: a broken file, or an adapter that does not fit its base.
        """
        checkpoint = variant.checkpoint
        if checkpoint is None or (checkpoint.adapter is not None and checkpoint.adapter.settings.inexpressible):
            return cls.of_model(variant.model, variant.name)
        return cls.of_checkpoint(checkpoint, variant.name)

    @classmethod
    def of_model(cls, model: nn.Module, name: str) -> EffectiveTensors:
        """Read a model in memory; tied parameters come once."""
        store = ModelTensors.of(model)
        anatomy = Anatomy.of(model)
        tied = getattr(anatomy.head, "weight", None) is getattr(anatomy.embedding, "weight", None)
        return cls(name, store, anatomy, tuple(Piece(each, each) for each in store.names), tied=tied)

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint, name: str | None = None) -> EffectiveTensors:
        """Open a checkpoint, with its adapter folded in.

        Raises:
            MidblockError: a broken file, an adapter that is no change of its base's tensors, or that does not fit.
        """
        config: Any = checkpoint.config
        skeleton = skeleton_of(config, trust_remote_code=checkpoint.trust_remote_code)
        store, anatomy = checkpoint.tensors(), _anatomy_of(skeleton)
        pieces = pieces_of({each: store.shape(each) for each in store.names}, skeleton)
        found = cls(name or checkpoint.name, store, anatomy, pieces)
        if checkpoint.adapter is not None:
            found = found._changed_by(checkpoint.adapter)
        tied = bool(getattr(config.get_text_config(), "tie_word_embeddings", False)) and found._head_is_embedding()
        return cls(found.name, store, anatomy, pieces, found.changes, tied)

    @property
    def blocks(self) -> int:
        """L, the number of decoder blocks."""
        return len(self.anatomy)

    @property
    def embedding(self) -> str:
        """The token embedding's weight."""
        return f"{self.anatomy.names['embedding']}.weight"

    @property
    def head(self) -> str:
        """The head's weight, which files of a tied model may lack."""
        return f"{self.anatomy.names['head']}.weight"

    @cached_property
    def by_name(self) -> Mapping[str, tuple[Piece, ...]]:
        """The pieces of each parameter."""
        found: dict[str, list[Piece]] = {}
        for piece in self.stored_pieces:
            found.setdefault(piece.name, []).append(piece)
        return {name: tuple(pieces) for name, pieces in found.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Every parameter, in the order of the store; last a head of its own that the files lack."""
        lacking = self.has_head and not self.tied and self.head not in self.by_name
        return (*self.by_name, *((self.head,) if lacking else ()))

    @property
    def has_head(self) -> bool:
        """Whether its head is known: stored, put there by an adapter, or standing in the embedding."""
        changed = self.head in self.changes.names
        return self.tied or changed or self.head in self.by_name or self._starts_as_embedding

    @property
    def head_piece(self) -> Piece:
        """The head as a piece: of files that lack it, of the embedding's tensor."""
        (piece,) = self.by_name.get(self.head, (None,))
        if piece is not None and not self.tied:
            return piece
        (embedding,) = self.by_name[self.embedding]
        return Piece(self.embedding if self.tied else self.head, embedding.stored)

    def pieces(self, name: str) -> tuple[Piece, ...]:
        """The pieces of a parameter; of a head that the files lack, its start."""
        return self.by_name.get(name) or (self.head_piece,)

    def projection(self, name: str) -> Projection:
        """Where a parameter sits and what it does."""
        return self.anatomy.projection_of(name)

    def shape(self, piece: Piece) -> tuple[int, ...]:
        """The shape of a piece."""
        if piece.name in self.changes.replaced and not piece.region:
            return tuple(self.changes.replaced[piece.name].shape)
        stored = self.store.shape(piece.stored)
        return tuple(box(torch.empty(stored, device="meta"), piece.inside).shape) if piece.inside else stored

    def source(self, piece: Piece) -> Source:
        """A piece's value; a view of the mapped file, valid while it is referenced."""
        changes, name = self.changes, piece.name
        if name in changes.replaced:
            stored = box(changes.replaced[name], piece.region)
        else:
            stored = box(self.store.read(piece.stored), piece.inside)
        delta = changes.deltas.get(name)
        if delta is None:
            delta = changes.deltas.get(piece.stored) if piece.region else None
            return Source(stored, delta)
        factor = self._factor(name) if name in changes.magnitudes else None
        if piece.region:
            whole = Source(torch.empty(delta.shape, device="meta"), delta, factor).cut(piece.region)
            return Source(stored, whole.delta, whole.factor)
        return Source(stored, delta, factor)

    def twin(self, other: EffectiveTensors, piece: Piece) -> Piece | None:
        """The piece here that is the same box of the same parameter as another model's; None where none is just it."""
        if piece.name == other.head and (self.tied or self.head not in self.by_name):
            return self.head_piece if self.has_head else None
        return self._by_box.get((piece.name, piece.region))

    def like(self, other: EffectiveTensors, piece: Piece) -> Source:
        """The value here of another model's piece, however it is stored here.

        Raises:
            KeyError: nothing of that name is here.
        """
        twin = self.twin(other, piece)
        if twin is not None:
            return self.source(twin)
        name, pieces = piece.name, self.by_name[piece.name]
        if len(pieces) == 1 and not pieces[0].region:
            return self.source(pieces[0]).cut(piece.region)
        return Source(box(self.read(name), piece.region))

    def read(self, name: str) -> Shaped[Tensor, "*shape"]:
        """A whole parameter: as it is stored where that is one tensor that nothing changes, else put together."""
        pieces = self.pieces(name)
        if len(pieces) == 1 and not pieces[0].region:
            return self.source(pieces[0]).value()
        sides = [range(0)] * len(pieces[0].region)
        for piece in pieces:
            stops = [side + 1 if isinstance(side, int) else side[1] for side in piece.region]
            sides = [range(max(len(side), stop)) for side, stop in zip(sides, stops, strict=True)]
        values = [(piece, self.source(piece).value()) for piece in pieces]
        kind = torch.float64 if any(value.dtype == torch.float64 for _, value in values) else values[0][1].dtype
        made = torch.empty([len(side) for side in sides], dtype=kind)
        for piece, value in values:
            box(made, piece.region).copy_(value)
        return made

    @cached_property
    def on_disk(self) -> Mapping[str, tuple[Piece, ...]]:
        """What each tensor of the store is made of, in the order of the store."""
        found: dict[str, list[Piece]] = {}
        for piece in self.stored_pieces:
            found.setdefault(piece.stored, []).append(piece)
        return {stored: tuple(pieces) for stored, pieces in found.items()}

    def written(self, stored: str) -> Source:
        """The value of what is stored under a name on disk; of a head that the files lack, under its own name."""
        if stored not in self.on_disk or (self.tied and self.on_disk[stored][0].name == self.head):
            return self.source(self.head_piece)
        return _joined(self.store.shape(stored), [(piece, self.source(piece)) for piece in self.on_disk[stored]])

    def written_like(self, other: EffectiveTensors, stored: str) -> Source:
        """The value here of what another model stores under a name on disk.

        Raises:
            KeyError: it is not here.
        """
        if stored not in other.on_disk:
            return self.source(self.head_piece)
        pieces = other.on_disk[stored]
        return _joined(other.store.shape(stored), [(piece, self.like(other, piece)) for piece in pieces])

    def projection_on_disk(self, stored: str) -> Projection:
        """What a tensor on disk is: a parameter, or the role in it that the tensor is a piece of."""
        if stored not in self.on_disk:
            return replace(self.projection(self.head), name=stored)
        piece = self.on_disk[stored][0]
        where = self.projection(piece.name)
        held = where.parts(torch.empty(self.shape(piece), device="meta"), piece.region) if piece.region else {}
        role = next(iter(held)) if len(held) == 1 else where.role
        return replace(where, name=stored, role=role)

    def release_on_disk(self, other: EffectiveTensors, stored: str) -> None:
        """Give back the pages from which another model's tensor on disk was read here."""
        for piece in other.on_disk.get(stored, ()):
            for own in self.by_name.get(piece.name, ()):
                self.store.release(own.stored)

    def origin(self, piece: Piece) -> tuple[Path, str] | None:
        """File and name of a piece that is just what lies on disk; None where an adapter changed it."""
        changed = piece.name in self.changes.names or (piece.region and piece.stored in self.changes.names)
        return None if changed else self.start(piece)

    def start(self, piece: Piece) -> tuple[Path, str] | None:
        """File and name of what a piece is read from, whatever an adapter does to it; None in memory."""
        file = self.store.file(piece.stored)
        if file is None:
            return None
        if file not in self._resolved:
            self._resolved[file] = file.resolve()
        return self._resolved[file], piece.stored

    def release(self, piece: Piece) -> None:
        """Give the pages that a piece was read from back to the system."""
        self.store.release(piece.stored)

    def close(self) -> None:
        """Let go of the files."""
        self.store.close()

    def __enter__(self) -> EffectiveTensors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def _by_box(self) -> Mapping[tuple[str, Any], Piece]:
        return {(piece.name, piece.region): piece for piece in self.stored_pieces}

    @cached_property
    def _factors(self) -> dict[str, Float64[Tensor, "*sides"]]:
        return {}

    @cached_property
    def _resolved(self) -> dict[Path, Path]:
        return {}

    @property
    def _starts_as_embedding(self) -> bool:
        return self.embedding in self.by_name and self.anatomy.head.weight is self.anatomy.embedding.weight

    def _factor(self, name: str) -> Float64[Tensor, "*sides"]:
        """DoRA's factor for each output, m / ‖W + s B A‖, shaped to multiply the weight as it is stored."""
        if name not in self._factors:
            where, magnitude = self.projection(name), self.changes.magnitudes[name].double().flatten()
            across = 0 if where.transposed or where.role == "embedding" else 1
            start = Source(self._untouched(name), self.changes.deltas[name])
            squared = torch.zeros(magnitude.shape, dtype=torch.float64)
            for rows, part in exact_rows(start):
                squares = part.square().sum(across)
                if across:
                    squared[rows] = squares
                else:
                    squared += squares
            self._factors[name] = (magnitude / squared.sqrt()).unsqueeze(across)
        return self._factors[name]

    def _untouched(self, name: str) -> Tensor:
        if name in self.changes.replaced:
            return self.changes.replaced[name]
        return EffectiveTensors(self.name, self.store, self.anatomy, self.stored_pieces).read(name)

    def _changed_by(self, adapter: Adapter) -> EffectiveTensors:
        """The same with an adapter's changes."""
        known, projections = _Known.of(self), self.anatomy.projections
        changes = Changes(
            dict(adapter.deltas(known, projections)), dict(adapter.magnitudes(known)), dict(adapter.replaced(known))
        )
        found = EffectiveTensors(self.name, self.store, self.anatomy, self.stored_pieces, changes)
        found._check_reached(adapter)
        return found

    def _check_reached(self, adapter: Adapter) -> None:
        stored = {piece.stored for piece in self.stored_pieces}
        opaque = {piece.stored: piece.opaque for piece in self.stored_pieces if piece.opaque}
        for name in sorted(self.changes.names):
            if name in self.by_name or name in stored or name == self.head:
                continue
            between = f", whose files store it by {next(iter(opaque.values()))}" if opaque else ""
            what = f"the adapter {adapter.folder} changes {name}, which its base has not{between}"
            hint = (
                "merge it with PEFT (merge_and_unload) and give the merged folder" if opaque else "--base names another"
            )
            raise MidblockError(what, hint=hint)

    def _head_is_embedding(self) -> bool:
        """Whether a model that calls itself tied has no head of other values (an adapter may have changed just one)."""
        changed = {self.embedding, self.head} & self.changes.names
        if not changed:
            both = self.embedding in self.by_name and self.head in self.by_name
            return not both or self._equal()
        replaced = self.changes.replaced.get(self.embedding)
        if changed == {self.embedding} and replaced is not None:
            (piece,) = self.by_name[self.embedding]
            return tuple(replaced.shape) != self.store.shape(piece.stored)  # resized: PEFT's head follows
        return len(changed) == 2 and self._equal()

    def _equal(self) -> bool:
        """Whether head and embedding have the same values, as they would be stored."""
        ours, theirs = (self.source(self.pieces(name)[0]) for name in (self.embedding, self.head))
        if ours.stored.shape != theirs.stored.shape:
            return False
        kinds = ours.stored.dtype, theirs.stored.dtype
        rows = zip(exact_rows(ours), exact_rows(theirs), strict=True)
        return all(torch.equal(a.to(kinds[0]), b.to(kinds[0])) for (_, a), (_, b) in rows)


@dataclass(frozen=True)
class _Known:
    """Names that an adapter may use for its base's tensors: those in memory, and those on disk of pieces."""

    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, found: EffectiveTensors) -> _Known:
        parameters = found.anatomy.projections
        shapes = {
            piece.stored: found.store.shape(piece.stored)
            for piece in found.stored_pieces
            if piece.region or piece.name not in parameters
        }
        shapes |= {name: _as_stored(each) for name, each in parameters.items()}
        shapes |= {piece.name: found.shape(piece) for piece in found.stored_pieces if not piece.region}
        if found.embedding in shapes:
            shapes.setdefault(found.head, shapes[found.embedding])
        return cls(shapes)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def __contains__(self, name: object) -> bool:
        return name in self.shapes


def _as_stored(projection: Projection) -> tuple[int, ...]:
    *stack, rows, columns = projection.shape if len(projection.shape) > 1 else (0, 0, 0)
    return (*stack, columns, rows) if projection.transposed else projection.shape


@lru_cache(maxsize=KEPT)
def _anatomy_of(skeleton: nn.Module) -> Anatomy:
    return Anatomy.of(skeleton)


def _joined(shape: tuple[int, ...], parts: Sequence[tuple[Piece, Source]]) -> Source:
    """One tensor on disk of the pieces that it holds."""
    if len(parts) == 1 and not parts[0][0].inside:
        return parts[0][1]
    values = [(piece, source.value()) for piece, source in parts]
    kind = torch.float64 if any(source.changed for _, source in parts) else values[0][1].dtype
    made = torch.empty(shape, dtype=kind)
    for piece, value in values:
        box(made, piece.inside).copy_(value)
    return Source(made)


def exact_rows(source: Source, entries: int = ROWS) -> Iterator[tuple[slice, Float64[Tensor, "rows *rest"]]]:
    """A tensor's value in float64, some of its leading rows at a time."""
    stored = source.stored
    if stored.ndim == 0:
        return
    step = max(1, entries // max(1, stored[0].numel()))
    for first in range(0, stored.shape[0], step):
        rows = slice(first, min(first + step, stored.shape[0]))
        buffer = torch.empty(stored[rows].numel(), dtype=torch.float64)
        source.fill(buffer, first * max(1, stored[0].numel()))
        yield rows, buffer.view(stored[rows].shape)
