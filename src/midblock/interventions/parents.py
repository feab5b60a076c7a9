"""The two parents of a merge: each one's value of a tensor, from its files, with an adapter's change on top."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor

from midblock.base import MidblockError
from midblock.checkpoints import Checkpoint, LowRankDelta, TensorReader, Variant, place
from midblock.interventions.blend import Source
from midblock.metrics.weight_comparison import BUFFERS, match_names

HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Parent:
    """One parent.

    Attributes:
        name: what to call it in messages.
        reader: its files, of an adapter its base's.
        deltas: an adapter's low-rank changes, by the tensor they are added to.
        replaced: tensors that an adapter puts in the place of others.
        embedding: the input embedding's tensor; None where the files have none.
        head: the head's tensor, which the files of a tied model may lack.
        tied: the head is the embedding.
    """

    name: str
    reader: TensorReader
    deltas: Mapping[str, LowRankDelta]
    replaced: Mapping[str, Shaped[Tensor, "*shape"]]
    embedding: str | None
    head: str
    tied: bool

    @classmethod
    def of(cls, variant: Variant, blocks: int) -> Parent:
        """Open a parent's files.

        Raises:
            MidblockError: a broken file, or an adapter that is no low-rank change of its base's tensors.
        """
        checkpoint = checkpoint_of(variant)
        reader = checkpoint.tensors()
        deltas, replaced = {}, {}
        if checkpoint.adapter is not None:
            deltas, replaced = dict(checkpoint.adapter.deltas(reader)), dict(checkpoint.adapter.replaced(reader))
        outside = {place(name, blocks).module: name for name in [*reader.names, *replaced] if name.endswith(".weight")}
        parent = cls(
            variant.name, reader, deltas, replaced, outside.get("embedding"), outside.get("head", HEAD), tied=False
        )
        tied = bool(getattr(variant.config, "tie_word_embeddings", False)) and parent._head_is_embedding()
        return cls(parent.name, reader, deltas, replaced, parent.embedding, parent.head, tied)

    @property
    def has_head(self) -> bool:
        """Whether its head is known: stored, put there by an adapter, or standing in the embedding."""
        return self.head in self.replaced or self._origin(self.head) is not None

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor but the head, in on-disk order."""
        return tuple(name for name in self.reader.names if name != self.head)

    def dtype(self, name: str) -> torch.dtype:
        """The type it is stored in; of a tensor that only the adapter has, the adapter's."""
        origin = self._origin(name)
        return self.reader.dtype(origin) if origin is not None else self.replaced[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        name = self._meant(name)
        if name in self.replaced:
            return tuple(self.replaced[name].shape)
        return self.reader.shape(str(self._origin(name)))

    def source(self, name: str) -> Source:
        """The tensor's value; a view of the mapped file, valid while it is referenced."""
        name = self._meant(name)
        stored = self.replaced[name] if name in self.replaced else self.reader.read(str(self._origin(name)))
        return Source(stored, self.deltas.get(name))

    def release(self, name: str) -> None:
        """Give the pages that a tensor was read from back to the system."""
        origin = self._origin(self._meant(name))
        if origin is not None:
            self.reader.release(origin)

    def stored_at(self, name: str) -> tuple[str, str] | None:
        """File and name of a tensor that is just what lies on disk; None where an adapter changed it."""
        name = self._meant(name)
        origin = self._origin(name)
        if name in self.replaced or name in self.deltas or origin is None:
            return None
        return str(self.reader.file(origin).resolve()), origin

    def _meant(self, name: str) -> str:
        return self.embedding if self.tied and name == self.head and self.embedding else name

    def _origin(self, name: str) -> str | None:
        """The tensor of the files that `name` starts from: of a head that was not written, the embedding."""
        name = self._meant(name)
        if name in self.reader:
            return name
        return self.embedding if name == self.head else None

    def _head_is_embedding(self) -> bool:
        """Whether a model that calls itself tied has no head of other values (an adapter may have changed just one)."""
        changed = {self.embedding, self.head} & {*self.deltas, *self.replaced}
        if not changed:
            both = self.embedding in self.reader and self.head in self.reader
            return not both or torch.equal(self.reader.read(str(self.embedding)), self.reader.read(self.head))
        if len(changed) == 1 or changed & self.deltas.keys():
            return False
        return torch.equal(self.replaced[str(self.embedding)], self.replaced[self.head])


def pair_names(base: Parent, tuned: Parent) -> dict[str, str]:
    """Pair every tensor of the base with the tuned model's, heads apart; a wrapper part in front may differ.

    Raises:
        MidblockError: a tensor that only one of them has, or whose shapes differ; it is named. Buffers may be lonely,
            some programs write them and some do not.
    """
    pairs = dict(match_names(base.names, tuned.names, tuned.name, []))
    matched = set(pairs.values())
    for owner, other, names in (
        (base, tuned, [name for name in base.names if name not in pairs]),
        (tuned, base, [name for name in tuned.names if name not in matched]),
    ):
        lonely = [name for name in names if not name.endswith(BUFFERS)]
        if lonely:
            more = f" and {len(lonely) - 1} more" if len(lonely) > 1 else ""
            hint = "both must be of one architecture, tuned from one base"
            raise MidblockError(f"{owner.name} has the tensor {lonely[0]}{more}, {other.name} has not", hint=hint)
    for name, counterpart in pairs.items():
        _check_shape(name, base, tuned, counterpart)
    return pairs


def pair_heads(base: Parent, tuned: Parent) -> dict[str, str]:
    """The head's names in both, where a head is to be written: the base's files have one, or a parent is not tied.

    Raises:
        MidblockError: the heads differ in shape.
    """
    stored = base.head in base.reader
    if base.tied and tuned.tied and not stored:
        return {}
    for owner, other in ((base, tuned), (tuned, base)):
        if owner.has_head and not other.has_head:
            raise MidblockError(f"{owner.name} has the tensor {owner.head}, {other.name} has not")
    if not base.has_head:
        return {}
    _check_shape(base.head, base, tuned, tuned.head)
    return {base.head: tuned.head}


def checkpoint_of(variant: Variant) -> Checkpoint:
    """The variant's files.

    Raises:
        MidblockError: it is in memory only.
    """
    if variant.checkpoint is None:
        raise MidblockError(f"{variant.name} has no files to merge")
    return variant.checkpoint


def _check_shape(name: str, base: Parent, tuned: Parent, other: str) -> None:
    ours, theirs = base.shape(name), tuned.shape(other)
    if ours == theirs:
        return
    rows = ours[1:] == theirs[1:] and name in (base.embedding, base.head)
    hint = "its vocabulary was resized: resize the other's too" if rows else "both must be tuned from one base"
    raise MidblockError(f"{name} is {list(ours)} in {base.name} and {list(theirs)} in {tuned.name}", hint=hint)
