"""How fused weights are laid out, where that is certain: q·k·v by family, gate·up by the module that computes them.

A layout is known because the family's code was read and a test holds it against the model's own keys, values and MLP;
shapes that happen to fit are no proof. What is not listed stays whole, under the role of the fused weight. Sources: the
modelling files of transformers.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from midblock.checkpoints.projections import Cut, Projection
from midblock.checkpoints.roles import ATTENTION, GATE_UP, QKV

# all queries, then all keys, then all values
_ONE_AFTER_THE_OTHER = ("gpt2", "phi3", "mpt", "dbrx")
# query, key and value of the first head, then of the second, …
_HEAD_BY_HEAD = ("gpt_neox", "gpt_neox_japanese", "bloom", "persimmon")
# MLPs of these families halve the outputs of one projection: the first half is gated
_GATE_FIRST = ("phi3", "glm", "glm4", "zamba2", "minimax_m3_vl_text")


def cut_of(found: Projection, holder: nn.Module, config: Any) -> Cut | None:
    """How a fused weight is cut into roles; None where it is not fused or its layout is not certain.

    Args:
        found: where the weight sits, its shape complete.
        holder: the module that computes with it.
        config: of the decoder.
    """
    if len(found.shape) < 2:
        return None
    rows, kind = found.shape[-2], str(value_of(config, "model_type") or "")
    if found.role == "gate_up" and not found.transposed and rows % 2 == 0:
        certain = found.stacked and getattr(holder, "is_concatenated", False) and getattr(holder, "has_gate", True)
        return Cut(GATE_UP, (rows // 2, rows // 2)) if certain or kind in _GATE_FIRST else None
    if found.role != "qkv" or len(found.shape) != 2:
        return None
    layout = _qkv(kind, config, _width(holder, config))
    if layout is None:
        return None
    groups, sizes = layout
    return Cut(QKV, sizes, groups, found.transposed) if rows == groups * sum(sizes) else None


def heads_of(found: Projection, holder: nn.Module, config: Any) -> tuple[int, int] | None:
    """How many heads an attention projection has and how wide each is; None where that is not certain."""
    if found.role not in ATTENTION or len(found.shape) != 2:
        return None
    width, asked = _width(holder, config), "num_attention_heads"
    if found.role in ("k_proj", "v_proj") and value_of(config, "num_key_value_heads") is not None:
        asked = "num_key_value_heads"
    side = found.shape[1] if found.role == "o_proj" else found.shape[0]
    count = value_of(config, asked) or (side // width if width else 0)  # None where it differs from block to block
    return (int(count), width) if count and side == int(count) * width else None


def value_of(config: Any, name: str) -> Any:
    """A field of a config; None where it has none, or another for each block."""
    try:
        return getattr(config, name, None)
    except RuntimeError:  # transformers' error for a field that differs from block to block
        return None


def _qkv(kind: str, config: Any, width: int) -> tuple[int, tuple[int, int, int]] | None:
    """Groups of rows, and how many of each group are queries, keys and values."""
    heads = int(value_of(config, "num_attention_heads") or 1)
    keys = int(value_of(config, "num_key_value_heads") or heads)
    if kind == "falcon":
        return _falcon(config, heads, width)
    if kind == "gpt_bigcode":
        return (1, (heads * width, width, width)) if config.multi_query else (heads, (width, width, width))
    if kind in _HEAD_BY_HEAD:
        return heads, (width, width, width)
    return (1, (heads * width, keys * width, keys * width)) if kind in _ONE_AFTER_THE_OTHER else None


def _falcon(config: Any, heads: int, width: int) -> tuple[int, tuple[int, int, int]]:
    if config.new_decoder_architecture:
        return config.num_kv_heads, (heads // config.num_kv_heads * width, width, width)
    return (1, (heads * width, width, width)) if config.multi_query else (heads, (width, width, width))


def _width(holder: nn.Module, config: Any) -> int:
    """How wide a head is: as its own module says, for it may differ from block to block; else the config."""
    own = getattr(holder, "head_dim", None) or value_of(config, "head_dim")
    if isinstance(own, int):
        return own
    heads, width = value_of(config, "num_attention_heads"), value_of(config, "hidden_size")
    return int(width) // int(heads) if heads and width else 0
