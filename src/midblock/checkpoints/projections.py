"""Projection: one parameter of a decoder, where it sits, what it does there, and how it is stored.

Names alone do not tell: a `dense` is an output in attention and a projection up in another family's MLP. So a
parameter's role is read off the module tree: which block holds it, which modules lie between, of which class. One table
says which part of a block each role belongs to; metrics, tuning and merging all ask it. Cost: a look at the modules on
the way to the parameter. The names that come of it: docs/run_folder.md, "LayerTable".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from midblock.checkpoints.roles import ATTENTION, GATE_UP, MLP, QKV, ROLES, other_modality

Region = tuple[int | tuple[int, int], ...]
"""A box in a tensor: an index or (first, past the last) for each dimension; empty for all of it."""

PARTS: Mapping[str, str] = {
    **dict.fromkeys((*ATTENTION, "qkv"), "attention"),
    **dict.fromkeys((*MLP, "gate_up"), "mlp"),
    **{role: role for role in ("router", "norm", "bias", "embedding", "position_embedding", "head")},
}
# words in the path of a parameter whose role has no name of its own (a latent-attention or state-space layer's)
_ATTENTION_WORDS = ("attn", "attention")
_MLP_WORDS = ("mlp", "feed_forward", "ffn", "expert", "moe")
_EMBEDDINGS = {"embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings"}
_POSITIONS = {"wpe", "embed_positions", "position_embeddings"}
_HEADS = {"lm_head", "embed_out"}
# names whose meaning hangs on the module around them
_IN_ATTENTION = {"c_proj": "o_proj", "dense": "o_proj", "out_proj": "o_proj"}
# what configs call the width of an MLP, of a dense block and of one expert
_MLP_WIDTHS = ("intermediate_size", "moe_intermediate_size", "ffn_dim", "ffn_hidden_size")


@dataclass(frozen=True)
class Cut:
    """How a fused weight is cut into roles along its outputs: `groups` times `sizes` rows, one size for each role."""

    roles: tuple[str, ...]
    sizes: tuple[int, ...]
    groups: int = 1
    transposed: bool = False

    def parts(self, tensor: Tensor) -> dict[str, Tensor]:
        """Role → its rows, as (out, in); views where the rows lie together."""
        rows = tensor.T if self.transposed else tensor
        if self.groups == 1:
            return dict(zip(self.roles, rows.split(list(self.sizes), dim=-2), strict=True))
        grouped = rows.unflatten(0, (self.groups, sum(self.sizes))).split(list(self.sizes), dim=1)
        return {role: part.flatten(0, 1) for role, part in zip(self.roles, grouped, strict=True)}

    def role_of(self, rows: tuple[int, int]) -> str | None:
        """The role that all rows from the first to the last (excluded) belong to; None where there are several."""
        start = 0
        for role, size in zip(self.roles, self.sizes, strict=True):
            if self.groups == 1 and start <= rows[0] and rows[1] <= start + size:
                return role
            start += size
        return None


@dataclass(frozen=True)
class Projection:
    """A parameter of a model.

    Attributes:
        name: in `named_parameters()` of the model that transformers builds.
        layer: -1 for embeddings, 0…L-1 for a block's, L for the final norm, the head, and whatever belongs to another
            modality (its role is then the tower's name).
        role: a value of `roles.ROLES`, "norm", "bias", "embedding", "head", or the parameter's own path in the block
            when its role is not known, so that nothing is dropped.
        part: of the block, see `part_of`.
        shape: (out, in), for experts (experts, out, in), however it is stored; of a vector its length.
        block: `layer` where that is a block, else None.
        transposed: stored as (in, out): GPT-2's Conv1D, and experts that say so.
        beside: of a bias, the role of the projection it is added to; for selection it answers to that too.
        heads: of an attention projection, how many heads it has and how wide each is, where that is certain.
        cut: how a fused weight is cut into roles; None where it is not fused or its layout is not certain.
    """

    name: str
    layer: int
    role: str
    part: str
    shape: tuple[int, ...]
    block: int | None = None
    transposed: bool = False
    beside: str | None = None
    heads: tuple[int, int] | None = None
    cut: Cut | None = field(default=None, repr=False)

    @property
    def per_rank(self) -> int:
        """Parameters of two factors together for each unit of rank: m + n, for every expert."""
        return math.prod(self.shape[:-2]) * sum(self.shape[-2:])

    @property
    def answers(self) -> tuple[str, ...]:
        """The roles it is selected by, its own first."""
        return (self.role,) if self.beside is None else (self.role, self.beside)

    def parts(self, tensor: Tensor, region: Region = ()) -> dict[str, Tensor]:
        """Take the tensor apart into the roles it holds.

        Args:
            tensor: the parameter as it is stored, or a piece of it.
            region: where in the parameter the piece lies.

        Returns:
            Role → view; the tensor under its own role when the layout is not known.
        """
        if self.cut is None:
            return {self.role: tensor}
        rows = region[-2] if region else None
        if rows is None or rows == (0, self.shape[-2]):
            return self.cut.parts(tensor)
        found = self.cut.role_of(rows) if isinstance(rows, tuple) and not self.transposed else None
        return {found or self.role: tensor}


def part_of(role: str) -> str:
    """The part of the model that a role belongs to.

    Returns:
        `attention`, `mlp`, `router`, `norm`, `bias`, `embedding`, `position_embedding`, `head` or `other`.
    """
    if role in PARTS:
        return PARTS[role]
    if any(word in role for word in _ATTENTION_WORDS):
        return "attention"
    if role.endswith("gate"):
        return "router"  # a shared expert's: one output
    return "mlp" if any(word in role for word in _MLP_WORDS) else "other"


def of_parameters(model: nn.Module, paths: Mapping[str, str], depth: int, config: Any) -> dict[str, Projection]:
    """Every parameter of a model, by name.

    Args:
        model: a causal language model.
        paths: the dotted path of its `blocks`, `embedding`, `final_norm` and `head`.
        depth: L.
        config: of its decoder.
    """
    modules = dict(model.named_modules())
    return {
        name: _completed(located(name, tuple(value.shape), paths, depth, modules), modules, config)
        for name, value in model.named_parameters()
    }


def located(
    name: str,
    shape: tuple[int, ...],
    paths: Mapping[str, str],
    depth: int,
    modules: Mapping[str, nn.Module] | None = None,
) -> Projection:
    """Say where the parameter `name` sits, also one that no module has.

    Args:
        modules: all modules of the model, whose classes then count beside the names.
    """
    inside = _inside(name, paths["blocks"])
    if inside is None:
        layer, role = _outside(name, paths, depth)
        return Projection(name, layer, role, part_of(role), shape)
    block, parts = int(inside[0]), inside[1:]
    classes = _classes(name, len(parts), modules or {})
    role, attention = _role(parts, classes), _in(parts[:-1], classes, _ATTENTION_WORDS)
    part = part_of(role)
    if part == "other":
        part = "attention" if attention else "mlp" if _in(parts[:-1], classes, _MLP_WORDS) else part
    weight = [*parts[:-1], parts[-1].removesuffix("_bias") if parts[-1] != "bias" else "weight"]
    beside = _role(weight, classes) if role == "bias" else None
    return Projection(name, block, role, part, shape, block=block, beside=beside)


def _inside(name: str, blocks: str) -> list[str] | None:
    """The parts of a name after the list of blocks, the block's number first; None outside of it."""
    rest = name.removeprefix(f"{blocks}.")
    parts = rest.split(".")
    return parts if rest != name and parts[0].isdigit() and len(parts) > 1 else None


def _classes(name: str, depth: int, modules: Mapping[str, nn.Module]) -> list[str]:
    """Class names, in small letters, of the modules between the block and the parameter, the outermost first."""
    parts = name.split(".")
    paths = (".".join(parts[:end]) for end in range(len(parts) - depth + 1, len(parts)))
    return [type(modules[path]).__name__.lower() if path in modules else "" for path in paths]


def _in(parts: Sequence[str], classes: Sequence[str], words: Sequence[str]) -> bool:
    return any(word in part for word in words for part in (*parts, *classes))


def _role(parts: Sequence[str], classes: Sequence[str]) -> str:
    """The role of a parameter from its path in the block and the classes of the modules on it."""
    owner = parts[-2] if parts[-1] in ("weight", "bias") and len(parts) > 1 else parts[-1]
    if "norm" in owner.lower() or owner.startswith("ln") or (classes and "norm" in classes[-1]):
        return "norm"
    if parts[-1].endswith("bias"):
        return "bias"
    attention = _in(parts[:-1], classes, _ATTENTION_WORDS)
    role = _IN_ATTENTION.get(owner) if attention else ROLES.get(owner)
    role = role or ROLES.get(owner)
    if role is None or (attention and role == "router"):
        return ".".join(part for part in parts if part != "weight" and not part.isdigit())
    return role


def _outside(name: str, paths: Mapping[str, str], depth: int) -> tuple[int, str]:
    """Layer and role of a parameter in no block of the decoder."""
    if elsewhere := other_modality(name):
        return depth, elsewhere
    parts = name.split(".")
    owner = parts[-2] if parts[-1] in ("weight", "bias") and len(parts) > 1 else parts[-1]
    path = name.rpartition(".")[0]
    if path == paths.get("head") or owner in _HEADS:
        return depth, "bias" if parts[-1] == "bias" else "head"
    if path == paths.get("embedding") or owner in _EMBEDDINGS:
        return -1, "embedding"
    if owner in _POSITIONS:
        return -1, "position_embedding"
    if "norm" in owner.lower() or owner.startswith("ln"):
        return -1 if "embed" in owner.lower() else depth, "norm"
    return depth, owner


def _completed(found: Projection, modules: Mapping[str, nn.Module], config: Any) -> Projection:
    """Add what the module that holds a parameter tells: shape and orientation; and what the config tells."""
    path, _, own = found.name.rpartition(".")
    module, shape, transposed = modules[path], found.shape, False
    if own == "weight" and isinstance(module, nn.Linear):
        # a layer says its shape itself: packed 4-bit weights and sharded ones would not
        shape = (module.out_features, module.in_features)
    elif own == "weight" and type(module).__name__ == "Conv1D":
        shape, transposed = (int(module.nf), int(module.nx)), True  # type: ignore[arg-type]
    elif len(shape) == 3 and getattr(module, "is_transposed", False):
        shape, transposed = (shape[0], shape[2], shape[1]), True
    found = replace(found, shape=shape, transposed=transposed)
    return replace(found, cut=_cut(found, config), heads=_heads(found, config))


def _cut(found: Projection, config: Any) -> Cut | None:
    if len(found.shape) < 2:
        return None
    rows = found.shape[-2]
    if found.role == "gate_up" and not found.transposed and rows in _gate_up_rows(config):
        return Cut(GATE_UP, (rows // 2, rows // 2))
    if found.role != "qkv" or len(found.shape) != 2:
        return None
    heads, width = _attention(config)
    kind, keys = getattr(config, "model_type", ""), getattr(config, "num_key_value_heads", None) or heads
    groups, queries = 1, heads
    if kind in ("gpt_neox", "bloom") or (kind == "falcon" and _falcon_per_head(config)):
        groups, queries, keys = heads, 1, 1
    elif kind == "falcon" and config.new_decoder_architecture:
        groups, queries, keys = config.num_kv_heads, heads // config.num_kv_heads, 1
    elif kind == "falcon":
        keys = 1
    sizes = (queries * width, keys * width, keys * width)
    return Cut(QKV, sizes, groups, found.transposed) if rows == groups * sum(sizes) else None


def _heads(found: Projection, config: Any) -> tuple[int, int] | None:
    if found.role not in ATTENTION or len(found.shape) != 2:
        return None
    heads, width = _attention(config)
    count = heads if found.role in ("q_proj", "o_proj") else getattr(config, "num_key_value_heads", None) or heads
    side = found.shape[1] if found.role == "o_proj" else found.shape[0]
    return (count, width) if side == count * width else None


def _attention(config: Any) -> tuple[int, int]:
    """How many heads of queries there are, and how wide each is."""
    heads = int(getattr(config, "num_attention_heads", None) or 1)
    return heads, int(getattr(config, "head_dim", None) or config.hidden_size // heads)


def _gate_up_rows(config: Any) -> list[int]:
    """How many rows gate and up have together, for each MLP width that the config gives."""
    widths = [getattr(config, name, None) for name in _MLP_WIDTHS]
    return [2 * width for width in widths if isinstance(width, int)]


def _falcon_per_head(config: Any) -> bool:
    return not config.new_decoder_architecture and not config.multi_query
