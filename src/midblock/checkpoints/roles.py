"""Which block a tensor belongs to, and what it does there, read from its name and, for fused tensors, the config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from torch import Tensor

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
QKV = ATTENTION[:3]
GATE_UP = MLP[:2]

# Names of projections in the wild → their role. A name that means different things in attention and in the MLP is
# settled by `_IN_ATTENTION`.
ROLES: Mapping[str, str] = {
    **{name: name for name in (*ATTENTION, *MLP)},
    "out_proj": "o_proj",
    "o_attn": "o_proj",
    "wq": "q_proj",
    "wk": "k_proj",
    "wv": "v_proj",
    "wo": "o_proj",
    "c_proj": "down_proj",
    "c_fc": "up_proj",
    "dense_h_to_4h": "up_proj",
    "dense_4h_to_h": "down_proj",
    "fc1": "up_proj",
    "fc2": "down_proj",
    "fc_in": "up_proj",
    "fc_out": "down_proj",
    "w1": "gate_proj",
    "w3": "up_proj",
    "w2": "down_proj",
    "c_attn": "qkv",
    "query_key_value": "qkv",
    "qkv_proj": "qkv",
    "Wqkv": "qkv",
    "gate_up_proj": "gate_up",
    "router": "router",
    "gate": "router",
}
_IN_ATTENTION = {"c_proj": "o_proj", "dense": "o_proj"}
_EMBEDDINGS = {"embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings"}
_POSITIONS = {"wpe", "embed_positions", "position_embeddings"}
_HEADS = {"lm_head", "embed_out"}
# Parts of the names of a multimodal model's towers and bridges, whose blocks are not the decoder's.
_OTHER_MODALITIES = ("vision", "visual", "audio", "image", "projector", "multi_modal")
# What configs call the width of an MLP, of a dense block and of one expert.
_MLP_WIDTHS = ("intermediate_size", "moe_intermediate_size", "ffn_dim", "ffn_hidden_size")


@dataclass(frozen=True)
class Place:
    """Where a tensor sits.

    Attributes:
        layer: -1 for embeddings, 0…L-1 for a block's tensors, L for the final norm, the head, and whatever belongs to
            another modality (its module is then the tower's name).
        module: a role of `ROLES`' values, "norm", "bias", "embedding", "head", or the tensor's own name when its role
            is not known, so that nothing is dropped.
    """

    layer: int
    module: str


def block_of(name: str) -> int | None:
    """The block index in a tensor or module name: its first whole-number part, None outside the decoder's blocks."""
    if other_modality(name):
        return None
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def other_modality(name: str) -> str | None:
    """The part of a tensor or module name, before its first number, that tells of a vision or audio tower or bridge."""
    before = takewhile(lambda part: not part.isdigit(), name.split("."))
    return next((part for part in before if any(word in part.lower() for word in _OTHER_MODALITIES)), None)


def place(name: str, blocks: int) -> Place:
    """Say where the tensor `name` of a model with `blocks` decoder blocks sits."""
    if elsewhere := other_modality(name):
        return Place(blocks, elsewhere)
    parts = name.split(".")
    block = block_of(name)
    owner = parts[-2] if parts[-1] in ("weight", "bias") and len(parts) > 1 else parts[-1]
    if block is None:
        return _outside(parts, owner, blocks)
    inside = parts[next(i for i, part in enumerate(parts) if part.isdigit()) + 1 :]
    if "norm" in owner.lower() or owner.startswith("ln"):
        return Place(block, "norm")
    if parts[-1].endswith("bias"):
        return Place(block, "bias")
    in_attention = any("attn" in part or "attention" in part for part in inside[:-1])
    role = (_IN_ATTENTION.get(owner) if in_attention else None) or ROLES.get(owner)
    return Place(block, role or ".".join(part for part in inside if part != "weight" and not part.isdigit()))


def _outside(parts: list[str], owner: str, blocks: int) -> Place:
    if owner in _HEADS:
        return Place(blocks, "bias" if parts[-1] == "bias" else "head")
    if owner in _EMBEDDINGS:
        return Place(-1, "embedding")
    if owner in _POSITIONS:
        return Place(-1, "position_embedding")
    if "norm" in owner.lower() or owner.startswith("ln"):
        return Place(-1 if "embed" in owner.lower() else blocks, "norm")
    return Place(blocks, owner)


def split_fused(tensor: Tensor, role: str, config: Any) -> dict[str, Tensor]:
    """Take a fused weight apart into the projections it holds, as views.

    Args:
        tensor: the weight as stored, 2-D, or 3-D with the experts first.
        role: `Place.module`; anything but "qkv" and "gate_up" comes back whole.
        config: the model's config, which tells the layout.

    Returns:
        Role → view; the tensor under its own role when the layout is not known.
    """
    if role == "gate_up" and tensor.shape[-2] in _gate_up_rows(config):
        gate, up = tensor.chunk(2, dim=-2)
        return dict(zip(GATE_UP, (gate, up), strict=True))
    if role != "qkv":
        return {role: tensor}
    kind = getattr(config, "model_type", "")
    if kind in ("gpt2", "gpt_bigcode", "imagegpt"):
        tensor = tensor.T
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    if kind in ("gpt_neox", "bloom") or (kind == "falcon" and _falcon_per_head(config)):
        return _interleaved(tensor, heads, 1, width)
    if kind == "falcon" and config.new_decoder_architecture:
        groups = config.num_kv_heads
        return _interleaved(tensor, groups, heads // groups, width)
    keys = 1 if kind == "falcon" else getattr(config, "num_key_value_heads", None) or heads
    if tensor.shape[0] != (heads + 2 * keys) * width:
        return {role: tensor}
    return dict(zip(QKV, tensor.split([heads * width, keys * width, keys * width]), strict=True))


def _gate_up_rows(config: Any) -> list[int]:
    """How many rows gate and up have together, for each MLP width that the config gives."""
    widths = [getattr(config, name, None) for name in _MLP_WIDTHS]
    return [2 * width for width in widths if isinstance(width, int)]


def _falcon_per_head(config: Any) -> bool:
    return not config.new_decoder_architecture and not config.multi_query


def _interleaved(tensor: Tensor, groups: int, queries: int, width: int) -> dict[str, Tensor]:
    """Rows laid out as groups × (queries…, key, value) × head width."""
    if tensor.shape[0] != groups * (queries + 2) * width:
        return {"qkv": tensor}
    parts = tensor.unflatten(0, (groups, queries + 2, width)).split([queries, 1, 1], dim=1)
    return {role: part.flatten(0, 2) for role, part in zip(QKV, parts, strict=True)}
