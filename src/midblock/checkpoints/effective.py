"""EffectiveTensors: every tensor of a model as it computes with it, by its name in memory, what changes it folded in.

Wherever weights are compared, merged or written, the question is the same: what is the value of this parameter? On disk
it may lie under another name, in pieces, without its adapter's change (low-rank, DoRA, on stacked experts, or a whole
tensor in its place), or, a tied head, not at all. This answers it, piece by piece in the order of the files, each
piece a `Source` whose change stays factored until it is needed. Cost: opening the files and the adapter; reading is one
tensor at a time, from mapped files. Sources: transformers' conversion table for the names (`stored_names`), PEFT's
layers for the changes (`changes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor, nn

from midblock.checkpoints.adapter import Adapter
from midblock.checkpoints.anatomy import Anatomy
from midblock.checkpoints.carried import Carried
from midblock.checkpoints.carrier import Carrier
from midblock.checkpoints.changes import Changes, Known, check_reached
from midblock.checkpoints.checkpoint import Checkpoint
from midblock.checkpoints.decoder_names import name_in
from midblock.checkpoints.fitting import check_blocks, check_shapes, without_copies
from midblock.checkpoints.model_tensors import ModelTensors
from midblock.checkpoints.pieces import Piece, box, extent, grouped, put_together, sides
from midblock.checkpoints.projections import Projection
from midblock.checkpoints.quantised import Codes, DequantisedTensors, dequantised
from midblock.checkpoints.skeleton import anatomy_of, skeleton_of
from midblock.checkpoints.source import Source, dora_factor, same_values
from midblock.checkpoints.stored_names import pieces_of
from midblock.checkpoints.tensors import TensorReader

BUFFERS = ("inv_freq", "masked_bias", ".attn.bias", ".attention.bias")

Store = TensorReader | DequantisedTensors | ModelTensors


@dataclass(frozen=True)
class EffectiveTensors:
    """The tensors of one model.

    Attributes:
        name: what to call the model in messages.
        store: its files, of an adapter its base's; or the model in memory.
        anatomy: of the model, or of its skeleton.
        stored_pieces: what each tensor of the store is in memory, in the order of the store.
        changes: an adapter's, or carriers'.
        tied: the head is the embedding; an adapter that changes one of them unties them.
    """

    name: str
    store: Store
    anatomy: Anatomy
    stored_pieces: tuple[Piece, ...]
    changes: Changes = field(default_factory=Changes)
    tied: bool = False

    @classmethod
    def of_model(cls, model: nn.Module, name: str) -> EffectiveTensors:
        """Read a model in memory; tied parameters come once."""
        store = ModelTensors.of(model)
        anatomy = Anatomy.of(model)
        weight = getattr(anatomy.head, "weight", None)
        parted = weight is not None and weight.is_meta and f"{anatomy.names['head']}.weight" not in store
        tied = parted or weight is getattr(anatomy.embedding, "weight", None)
        return cls(name, store, anatomy, tuple(Piece(each, each) for each in store.names), tied=tied)

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint, name: str | None = None) -> EffectiveTensors:
        """Open a checkpoint, with its adapter folded in.

        Raises:
            MidblockError: a broken file, a parameter stored twice with different values, an adapter that is no change
                of its base's tensors, or that does not fit.
        """
        config: Any = checkpoint.config
        skeleton = skeleton_of(config, trust_remote_code=checkpoint.trust_remote_code)
        store, anatomy = dequantised(checkpoint.tensors(), config), anatomy_of(skeleton)
        pieces = pieces_of({each: store.shape(each) for each in store.names}, skeleton)
        pieces = without_copies(pieces, store, name or checkpoint.name)
        check_shapes(pieces, store, skeleton, name or checkpoint.name)
        check_blocks(pieces, anatomy, name or checkpoint.name)
        found = cls(name or checkpoint.name, store, anatomy, pieces)
        ties = anatomy.head.weight is anatomy.embedding.weight
        if ties and found.embedding not in found.by_name:  # a tied model's files may name just the head
            found = replace(found, stored_pieces=found._renamed(found.head, found.embedding))
        if checkpoint.adapter is not None:
            found = found._changed_by(checkpoint.adapter)
        found = replace(found, tied=ties and found._head_is_embedding())
        return found._carrying(checkpoint.carriers) if checkpoint.carriers else found

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
        return grouped(self.stored_pieces, "name")

    @cached_property
    def on_disk(self) -> Mapping[str, tuple[Piece, ...]]:
        """What each tensor of the store is made of, in the order of the store."""
        return grouped(self.stored_pieces, "stored")

    @property
    def names(self) -> tuple[str, ...]:
        """Every parameter, in the order of the store; last a head of its own that the files lack."""
        lacking = self.has_head and not self.tied and self.head not in self.by_name
        return (*self.by_name, *((self.head,) if lacking else ()))

    @cached_property
    def unread(self) -> tuple[Piece, ...]:
        """What lies on disk and is no part of the model: transformers does not load it. Buffers of old do not count."""
        return tuple(each for each in self.stored_pieces if each.unread and not each.stored.endswith(BUFFERS))

    @property
    def coded(self) -> Mapping[str, Codes]:
        """Tensors on disk that are stored as codes and read as the weights that those stand for."""
        return self.store.coded if isinstance(self.store, DequantisedTensors) else {}

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

    def name_of(self, other: EffectiveTensors, name: str) -> str:
        """What a parameter of another model is called here: decoders correspond part by part, wherever they stand."""
        return name_in(self.anatomy.names, other.anatomy.names, name)

    def projection(self, name: str) -> Projection:
        """Where a parameter sits and what it does."""
        return self.anatomy.projection_of(name)

    def shape(self, piece: Piece) -> tuple[int, ...]:
        """The shape of a piece."""
        if piece.name in self.changes.replaced and not piece.region:
            return tuple(self.changes.replaced[piece.name].shape)
        return sides(piece.inside) if piece.inside else self.store.shape(piece.stored)

    def source(self, piece: Piece) -> Source:
        """A piece's value; a view of the mapped file, valid while it is referenced."""
        changes, name = self.changes, piece.name
        if name in changes.replaced:
            stored = box(changes.replaced[name], piece.region)
        else:
            read = self.store.read(piece.stored)
            stored = box(read if piece.turn is None else piece.turn.apply(read), piece.inside)
            stored = changes.carried.placed(piece, stored)
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
        return self._by_box.get((self.name_of(other, piece.name), piece.region))

    def like(self, other: EffectiveTensors, piece: Piece) -> Source:
        """The value here of another model's piece, however it is stored here.

        Raises:
            KeyError: nothing of that name is here.
        """
        twin = self.twin(other, piece)
        if twin is not None:
            return self.source(twin)
        name = self.name_of(other, piece.name)
        pieces = self.by_name[name]
        if len(pieces) == 1 and not pieces[0].region:
            return self.source(pieces[0]).cut(piece.region)
        return Source(box(self.read(name), piece.region))

    def read(self, name: str) -> Shaped[Tensor, "*shape"]:
        """A whole parameter: as it is stored where that is one tensor that nothing changes, else put together."""
        pieces = self.pieces(name)
        if len(pieces) == 1 and not pieces[0].region:
            return self.source(pieces[0]).value()
        boxes = [(piece.region, self.source(piece).value()) for piece in pieces]
        return put_together(extent([region for region, _ in boxes]), boxes)

    def origin(self, piece: Piece) -> tuple[Path, str] | None:
        """File and name of a piece that is just what lies on disk; None where an adapter or a carrier changed it."""
        return None if self.changes.touch(piece) else self.start(piece)

    def start(self, piece: Piece) -> tuple[Path, str] | None:
        """File and name of what a piece is read from, whatever an adapter adds to it; None in memory.

        None also where a carrier's values stand in it: it is then read from two files.
        """
        file = self.store.file(piece.stored)
        if file is None or self.changes.carried.touch(piece):
            return None
        if file not in self._resolved:
            self._resolved[file] = file.resolve()
        return self._resolved[file], piece.stored

    @property
    def outlined(self) -> EffectiveTensors:
        """The same, to be asked for types and shapes: what a carrier touches is not computed."""
        carried = replace(self.changes.carried, outlined=True)
        return replace(self, changes=replace(self.changes, carried=carried)) if carried.carriers else self

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
        """DoRA's factor for each output, computed once."""
        if name not in self._factors:
            where, magnitude = self.projection(name), self.changes.magnitudes[name].double().flatten()
            start = Source(self._untouched(name), self.changes.deltas[name])
            across = where.transposed or where.role == "embedding"
            self._factors[name] = dora_factor(start, magnitude, transposed=across)
        return self._factors[name]

    def _untouched(self, name: str) -> Tensor:
        if name in self.changes.replaced:
            return self.changes.replaced[name]
        return replace(self, changes=Changes()).read(name)

    def _renamed(self, name: str, other: str) -> tuple[Piece, ...]:
        """The pieces, those of one parameter as another's."""
        return tuple(replace(each, name=other) if each.name == name else each for each in self.stored_pieces)

    def _changed_by(self, adapter: Adapter) -> EffectiveTensors:
        """The same with an adapter's changes."""
        stored, parameters = {name: self.store.shape(name) for name in self.store.names}, self.anatomy.projections
        known = Known.of(stored, self.stored_pieces, parameters).with_head(self.head, self.embedding)
        changes = Changes.of(adapter, known, parameters)
        check_reached(changes, self.stored_pieces, self.head, f"the adapter {adapter.folder}")
        return replace(self, changes=changes)

    def _carrying(self, carriers: Sequence[Carrier]) -> EffectiveTensors:
        """The same with carriers' values in it; a head that is tied stays so."""
        shapes = {name: tuple(value.shape) for name, value in self.anatomy.model.named_parameters()}
        carriers = [carrier.named_as(self.anatomy.names) for carrier in carriers]
        for carrier in carriers:
            carrier.check_on(shapes, self.name)
        changes = replace(self.changes, carried=Carried(tuple(carriers)))
        check_reached(changes, self.stored_pieces, self.head, carriers[0].name)
        return replace(self, changes=changes)

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
        return same_values(ours, theirs)
