"""Changes: what an adapter or carriers do to their base, by the names that the base's tensors have in memory.

An adapter names tensors as its maker's model did: as they are in memory, or, of a part of a parameter, as on disk. All
that it may name is gathered here with its shape; what it names beyond that is refused. Cost: the adapter's file, whose
factors stay factored. Source: PEFT's file format (`adapter`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

from torch import Tensor

from midblock.base import MidblockError
from midblock.checkpoints.adapter import Adapter
from midblock.checkpoints.anatomy import Anatomy
from midblock.checkpoints.carried import Carried
from midblock.checkpoints.checkpoint import Checkpoint
from midblock.checkpoints.low_rank import Delta
from midblock.checkpoints.pieces import Piece, sides
from midblock.checkpoints.projections import Projection
from midblock.checkpoints.skeleton import anatomy_of, skeleton_of
from midblock.checkpoints.stored_names import pieces_of


@dataclass(frozen=True)
class Changes:
    """What an adapter or carriers do to their base.

    Attributes:
        deltas: low-rank changes, by the name of the parameter, or of the tensor on disk where that is a part of one.
        magnitudes: DoRA's, by parameter.
        replaced: whole tensors put in the place of others, by parameter.
        carried: the entries that carriers put into a parameter.
    """

    deltas: Mapping[str, Delta] = field(default_factory=dict)
    magnitudes: Mapping[str, Tensor] = field(default_factory=dict)
    replaced: Mapping[str, Tensor] = field(default_factory=dict)
    carried: Carried = field(default_factory=Carried)

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of all that is changed."""
        return frozenset({*self.deltas, *self.magnitudes, *self.replaced, *self.carried.names})

    @classmethod
    def of(cls, adapter: Adapter, known: Known, parameters: Mapping[str, Projection]) -> Changes:
        """Read an adapter.

        Raises:
            MidblockError: it is no change of its base's tensors, does not fit them, or is not whole.
        """
        found = cls(
            dict(adapter.deltas(known, parameters)), dict(adapter.magnitudes(known)), dict(adapter.replaced(known))
        )
        if lacking := next(_lacking(found, adapter, parameters), None):
            hint = "the file is not whole: save the adapter again"
            raise MidblockError(f"{adapter.folder} lacks {lacking}, which its config promises", hint=hint)
        return found

    def touch(self, piece: Piece) -> bool:
        """Whether anything happens to a piece: to its parameter, to its name on disk, or, by carriers, to its box."""
        if piece.name in self.carried.names:
            return self.carried.touch(piece)
        return piece.name in self.names or (bool(piece.region) and piece.stored in self.names)


@dataclass(frozen=True)
class Known:
    """Names that an adapter may use for its base's tensors: those in memory, and those on disk of pieces.

    Attributes:
        shapes: of each, as it is stored.
    """

    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(
        cls,
        stored: Mapping[str, tuple[int, ...]],
        pieces: Sequence[Piece],
        parameters: Mapping[str, Projection],
    ) -> Known:
        """Gather what the base has.

        Args:
            stored: shapes of the tensors on disk.
            pieces: what they are in memory.
            parameters: of the model.
        """
        parts = (each.stored for each in pieces if each.region or each.name not in parameters)
        shapes = {name: stored[name] for name in parts}
        shapes |= {name: _as_stored(each) for name, each in parameters.items()}
        return cls(shapes | {each.name: _shape(stored, each) for each in pieces if not each.region})

    def with_head(self, head: str, embedding: str) -> Known:
        """The same, with a head of the embedding's shape where none is known."""
        if head in self.shapes or embedding not in self.shapes:
            return self
        return Known({**self.shapes, head: self.shapes[embedding]})

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def __contains__(self, name: object) -> bool:
        return name in self.shapes


def known_of(checkpoint: Checkpoint) -> tuple[Known, Anatomy]:
    """What an adapter may name in a checkpoint's base, and the base's anatomy; headers are read, no weights."""
    skeleton = skeleton_of(checkpoint.config, trust_remote_code=checkpoint.trust_remote_code)
    anatomy = anatomy_of(skeleton)
    with checkpoint.tensors() as store:
        stored = {name: store.shape(name) for name in store.names}
    head, embedding = (f"{anatomy.names[part]}.weight" for part in ("head", "embedding"))
    known = Known.of(stored, pieces_of(stored, skeleton), anatomy.projections)
    return known.with_head(head, embedding), anatomy


def _lacking(changes: Changes, adapter: Adapter, parameters: Mapping[str, Projection]) -> Iterator[str]:
    """What belongs to a change that is there, or is to be replaced, and is not in the adapter's file."""
    settings = adapter.settings
    if settings.use_dora:
        yield from (f"the lora_magnitude_vector of {name}" for name in changes.deltas if name not in changes.magnitudes)
        yield from (f"the factors of {name}" for name in changes.magnitudes if name not in changes.deltas)
    for name in parameters if settings.modules_to_save else ():
        modules = accumulate(name.split(".")[:-1], "{}.{}".format)
        if name not in changes.replaced and any(each.endswith(settings.modules_to_save) for each in modules):
            yield f"{name} (modules_to_save)"


def check_reached(changes: Changes, pieces: Sequence[Piece], head: str, who: str) -> None:
    """Do nothing if all that is changed can be read.

    Args:
        pieces: all that the base's files hold.
        head: may be lacking there.
        who: changes it, for messages.

    Raises:
        MidblockError: naming a tensor that no file holds, or that is stored by an operation which is not followed.
    """
    reached = {head, *(each.name for each in pieces), *(each.stored for each in pieces)}
    lost = min(changes.names - reached, default=None)
    if lost is None:
        return
    what = f"{who} changes {lost}, which its base has not"
    operation = next((each.opaque for each in pieces if each.opaque), None)
    if operation is None:
        raise MidblockError(what, hint="--base names another")
    hint = "merge it where it was made (PEFT's merge_and_unload), and give the merged folder"
    raise MidblockError(f"{what}, whose files store it by {operation}", hint=hint)


def _as_stored(projection: Projection) -> tuple[int, ...]:
    *stack, rows, columns = projection.shape if len(projection.shape) > 1 else (0, 0, 0)
    return (*stack, columns, rows) if projection.transposed else projection.shape


def _shape(stored: Mapping[str, tuple[int, ...]], piece: Piece) -> tuple[int, ...]:
    return sides(piece.inside) if piece.inside else stored[piece.stored]
