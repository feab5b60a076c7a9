"""The rules by which a parameter's dimensions get their channel groups.

P3's eight in a block: `ffn_read`, `ffn_hidden`, `ffn_write`, `attn_read`, `q`, `k`, `v`, `attn_write`. Biases go with
the rows of their projection, norms with the stream that they feed or write to. A second attention or MLP in a block
(a shared expert, say) has groups of its own, named with its path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from midblock.checkpoints import Projection
from midblock.checkpoints.roles import ATTENTION, GATE_UP, MLP, QKV
from midblock.tuning.carve.seen import Seen

ROWS = {
    **dict(zip(QKV, ("q", "k", "v"), strict=True)), "o_proj": "attn_write",
    **dict.fromkeys(GATE_UP, "ffn_hidden"), "down_proj": "ffn_write",
}  # fmt: skip
COLUMNS = {**dict.fromkeys(QKV, "attn_read"), **dict.fromkeys(GATE_UP, "ffn_read"), "down_proj": "ffn_hidden"}
FUSED = {"qkv": "attn_read", "gate_up": "ffn_read"}
LOOKED_UP = ("embedding", "position_embedding")  # whose rows are tokens, and whose outputs are columns


@dataclass(frozen=True, eq=False)
class Along:
    """What decides along one dimension: a piece of it for each group, positions within the group.

    Attributes:
        pieces: group, its size, which places of the dimension, and which of the group's masks decides of each.
    """

    pieces: tuple[tuple[str, int, Int[Tensor, "_"], Int[Tensor, "_"]], ...]
    length: int

    @classmethod
    def whole(cls, group: str, size: int, masks: Int[Tensor, "n"] | None = None) -> Along:
        """All of a dimension by one group, one mask a place unless `masks` says which."""
        chosen = torch.arange(size) if masks is None else masks
        return cls(((group, size, torch.arange(len(chosen)), chosen),), len(chosen))

    @property
    def groups(self) -> dict[str, int]:
        return {group: size for group, size, _, _ in self.pieces}

    def placed(self, starts: Mapping[str, int]) -> Int[Tensor, "n"]:
        found = torch.empty(self.length, dtype=torch.int64)
        for group, _, places, masks in self.pieces:
            found[places] = starts[group] + masks
        return found


@dataclass(frozen=True, eq=False)
class Index:
    """What decides along each dimension of a parameter as it is stored."""

    along: tuple[Along | None, ...]

    @property
    def groups(self) -> dict[str, int]:
        """The groups it names, and their sizes."""
        return {group: size for each in self.along if each is not None for group, size in each.groups.items()}

    def placed(self, starts: Mapping[str, int]) -> tuple[Int[Tensor, "_"] | None, ...]:
        """Positions in the layer's flat mask vector, whose groups begin at `starts`."""
        return tuple(None if each is None else each.placed(starts) for each in self.along)


def group_block(inside: Sequence[Projection], seen: Seen) -> dict[str, Index]:
    """The groups of a block's parameters, by name."""
    rules = _Block(inside, seen)
    return {each.name: rules.index(each) for each in inside}


def group_outside(inside: Sequence[Projection]) -> dict[str, Index]:
    """The groups of a layer's parameters outside the blocks: one each, over its outputs, a bias with its weight."""
    rules = _Names({each.name: each for each in inside})
    return {each.name: rules.own(each) for each in inside}


class _Names:
    """Names of groups that a parameter has for itself, no two alike in a layer."""

    def __init__(self, inside: Mapping[str, Projection]) -> None:
        self.inside = inside
        self.taken: dict[str, str] = {}
        self.made: dict[str, Index] = {}

    def own(self, where: Projection) -> Index:
        """A group over the outputs of a parameter."""
        if where.name in self.made:
            return self.made[where.name]
        weight = self.inside.get(weight_of_bias(where.name))
        if where.name.endswith("bias") and weight is not None:
            rows = self.output(self.own(weight), weight)
            if rows is not None and rows.length == where.shape[-1]:
                return self._kept(where, Index((*[None] * (len(where.shape) - 1), rows)))
        at = output_of(where)
        size = stored_shape(where)[at]
        along: list[Along | None] = [None] * len(where.shape)
        along[at] = Along.whole(self._name(where), size)
        return self._kept(where, Index(tuple(along)))

    def output(self, index: Index, where: Projection) -> Along | None:
        return index.along[output_of(where)]

    def _name(self, where: Projection) -> str:
        path = ".".join(part for part in where.name.split(".") if part != "weight")
        inside = path.split(f".{where.block}.", 1)[-1] if where.block is not None else path
        by_path = where.role == "bias" or (where.role == "norm" and where.block is not None)
        plain = inside if by_path else where.role
        name = plain if self.taken.setdefault(plain, where.name) == where.name else inside
        self.taken.setdefault(name, where.name)
        return name

    def _kept(self, where: Projection, index: Index) -> Index:
        self.made[where.name] = index
        return index


class _Block:
    """The rules in one block.

    Attributes:
        units: path of the module that holds an attention or an MLP → what the names of its groups end in.
    """

    def __init__(self, inside: Sequence[Projection], seen: Seen) -> None:
        self.inside, self.seen = {each.name: each for each in inside}, seen
        self.names = _Names(self.inside)
        self.units: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        for kinds in ((*ATTENTION, "qkv"), (*MLP, "gate_up")):
            held = [_holder(each.name) for each in inside if each.role in kinds and not self._of_experts(each)]
            for number, path in enumerate(dict.fromkeys(held)):
                self.units[path] = "" if number == 0 else f".{path.split(f'.{inside[0].block}.', 1)[-1]}"
        self.made = {each.name: found for each in inside if (found := self._projection(each)) is not None}

    def index(self, where: Projection) -> Index:
        """What decides of a parameter."""
        if where.name in self.made:
            return self.made[where.name]
        if (experts := self._experts(where)) is not None:
            return experts
        if where.role == "bias" and (index := self.made.get(weight_of_bias(where.name))) is not None:
            rows = index.along[output_of(self.inside[weight_of_bias(where.name)])]
            if rows is not None and (rows.length,) == where.shape:
                return Index((rows,))
        if where.part == "norm" and len(where.shape) == 1 and (stream := self._stream(where)) is not None:
            return Index((stream,))
        return self.names.own(where)

    def _projection(self, where: Projection) -> Index | None:
        """A projection whose role is known: its rows, and its columns where they are another group's channels."""
        if len(where.shape) != 2 or self._of_experts(where):
            return None
        end = self.units.get(_holder(where.name), "")
        rows, columns = where.shape
        if where.role in FUSED:
            # how it is laid out is not always certain, what it reads is
            first = self._rows(where.role + end, rows) if where.cut is None else self._fused(where, end)
            second = self._columns(FUSED[where.role] + end, columns)
        elif where.role in ROWS:
            first = self._rows(ROWS[where.role] + end, rows)
            named = COLUMNS.get(where.role)
            second = self._values(where, end) if named is None else self._columns(named + end, columns)
        else:
            return None
        return Index((second, first) if where.transposed else (first, second))

    def _rows(self, group: str, size: int) -> Along:
        """Outputs of a projection; where a group of that name has another size, of a group beside it."""
        while self.sizes.setdefault(group, size) != size:
            group += "+"
        return Along.whole(group, size)

    def _columns(self, group: str, size: int) -> Along | None:
        """Inputs of a projection; None where they are not the channels of that group."""
        return Along.whole(group, size) if self.sizes.setdefault(group, size) == size else None

    def _fused(self, where: Projection, end: str) -> Along:
        pieces = []
        for role, places in rows_by_role(where).items():
            ((group, size, _, masks),) = self._rows(ROWS[role] + end, len(places)).pieces
            pieces.append((group, size, places, masks))
        return Along(tuple(pieces), where.shape[0])

    def _values(self, where: Projection, end: str) -> Along | None:
        """The columns of attention's output: values, where the model shows which."""
        beside = [each for each in self.inside.values() if _holder(each.name) == _holder(where.name)]
        for each in beside:
            if each.role == "v_proj":
                rows = torch.arange(each.shape[0])
            elif each.role == "qkv" and each.cut is not None:
                rows = rows_by_role(each)["v_proj"]
            else:
                continue
            if where.heads is not None and len(each.shape) == 2:
                paths = each.name.rpartition(".")[0], where.name.rpartition(".")[0]
                read = self.seen.values_read(paths[0], rows, paths[1], where.heads)
                if read is not None:
                    return Along.whole("v" + end, len(rows), read)
        return None

    def _stream(self, where: Projection) -> Along | None:
        """The stream that a norm feeds, or else the one that it takes."""
        path = where.name.rpartition(".")[0]
        for others, side in ((self.seen.feeds(path), 1), (self.seen.takes(path), 0)):
            for other in others:
                index, owner = self.made.get(f"{other}.weight"), self.inside.get(f"{other}.weight")
                if index is None or owner is None:
                    continue
                along = index.along[(1 - side) if owner.transposed else side]
                if along is not None and along.length == where.shape[0]:
                    return along
        return None

    def _of_experts(self, where: Projection) -> bool:
        """Whether a matrix is one of several experts', or of all of them one below the other (DBRX)."""
        return where.stacked or _expert_at(where.name) is not None or "experts" in where.name.split(".")

    def _experts(self, where: Projection) -> Index | None:
        """One mask an expert, shared by its matrices and biases."""
        at = _expert_at(where.name)
        if at is not None:
            path, number = at
            count = 1 + max(found[1] for name in self.inside if (found := _expert_at(name)) and found[0] == path)
            masks = torch.full((stored_shape(where)[0],), number)
            return Index((Along.whole(self._experts_name(path), count, masks), *[None] * (len(where.shape) - 1)))
        weight = self.inside.get(weight_of_bias(where.name)) if where.role == "bias" else where
        if weight is None or not weight.stacked or weight.shape[0] != where.shape[0]:
            return None
        along = Along.whole(self._experts_name(where.name.rpartition(".")[0]), where.shape[0])
        return Index((along, *[None] * (len(where.shape) - 1)))

    def _experts_name(self, path: str) -> str:
        plain = self.names.taken.setdefault("experts", path)
        block = next(iter(self.inside.values())).block
        return "experts" if plain == path else path.split(f".{block}.", 1)[-1]


def rows_by_role(where: Projection) -> dict[str, Int[Tensor, "n"]]:
    """Which outputs of a fused projection belong to each role, in the order of that role's channels."""
    if where.cut is None:
        return {}
    places = torch.arange(where.shape[-2])
    return {
        role: part.flatten()
        for role, part in where.cut.parts(places[None] if where.transposed else places[:, None]).items()
    }


def weight_of_bias(name: str) -> str:
    """The weight that a bias stands beside."""
    path, _, last = name.rpartition(".")
    return f"{path}.{'weight' if last == 'bias' else last.removesuffix('_bias')}"


def output_of(where: Projection) -> int:
    """The dimension of a parameter, as it is stored, that is its outputs."""
    if where.part in LOOKED_UP or where.role == "embedding":
        return len(where.shape) - 1
    if len(where.shape) == 2 and where.transposed:
        return 1
    return 0


def stored_shape(where: Projection) -> tuple[int, ...]:
    """The shape of a parameter as it is stored."""
    return (*where.shape[:-2], where.shape[-1], where.shape[-2]) if where.transposed else where.shape


def _holder(name: str) -> str:
    """The module that holds a projection, those passed over in which families keep queries, keys and values."""
    path = name.rpartition(".")[0].rpartition(".")[0]
    return path.removesuffix(".qkv_proj")


def _expert_at(name: str) -> tuple[str, int] | None:
    """The list of experts that a parameter lies in, and the number of its expert."""
    parts = name.split(".")
    for at in range(1, len(parts)):
        if parts[at].isdigit() and "expert" in parts[at - 1].lower():
            return ".".join(parts[:at]), int(parts[at])
    return None
