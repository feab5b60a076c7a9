"""The roles of projections, the part of the model that each belongs to, and the names that mean them in the wild.

A name by itself tells little: `out_proj` is attention's output in one family and a convolution's in another. Which
names count where is therefore said for each kind of module; `places.py`, which sees the modules, decides the kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
QKV = ATTENTION[:3]
GATE_UP = MLP[:2]

PARTS: Mapping[str, str] = {
    **dict.fromkeys((*ATTENTION, "qkv"), "attention"),
    **dict.fromkeys((*MLP, "gate_up"), "mlp"),
    **{role: role for role in ("router", "norm", "bias", "embedding", "position_embedding", "head")},
}

# What the names in a module of attention mean.
IN_ATTENTION: Mapping[str, str] = {
    **{name: name for name in ATTENTION},
    "out_proj": "o_proj",
    "o_attn": "o_proj",
    "c_proj": "o_proj",
    "dense": "o_proj",
    "wq": "q_proj",
    "wk": "k_proj",
    "wv": "v_proj",
    "wo": "o_proj",
    "Wo": "o_proj",
    "c_attn": "qkv",
    "query_key_value": "qkv",
    "qkv_proj": "qkv",
    "Wqkv": "qkv",
}
# What those in an MLP mean, and those that stand right in a block.
IN_MLP: Mapping[str, str] = {
    **{name: name for name in MLP},
    "c_fc": "up_proj",
    "c_proj": "down_proj",
    "dense_h_to_4h": "up_proj",
    "dense_4h_to_h": "down_proj",
    "fc1": "up_proj",
    "fc2": "down_proj",
    "fc_in": "up_proj",
    "fc_out": "down_proj",
    "proj_up_gate": "gate_proj",
    "proj_up": "up_proj",
    "proj_down": "down_proj",
    "w1": "gate_proj",
    "w3": "up_proj",
    "w2": "down_proj",
    "Wo": "down_proj",
    "gate_up_proj": "gate_up",
}
# Kind of module → name of what it holds → role. Linear attention has other projections too, and an output that is not
# softmax attention's.
ROLES: Mapping[str, Mapping[str, str]] = {
    "attention": IN_ATTENTION,
    "linear attention": {name: name for name in ATTENTION},
    "mlp": IN_MLP,
}
# Parts of the names of a multimodal model's towers and bridges, whose blocks are not the decoder's.
_OTHER_MODALITIES = ("vision", "visual", "audio", "image", "projector", "multi_modal")


def part_of(role: str) -> str:
    """The part of the model that a role with a name of its own belongs to.

    Returns:
        `attention`, `mlp`, `router`, `norm`, `bias`, `embedding`, `position_embedding` or `head`; `other` where only
        the modules tell, which a `Projection` has seen.
    """
    return PARTS.get(role, "other")


def other_modality(name: str) -> str | None:
    """The part of a tensor or module name, before its first number, that tells of a vision or audio tower or bridge."""
    before = takewhile(lambda part: not part.isdigit(), name.split("."))
    return next((part for part in before if any(word in part.lower() for word in _OTHER_MODALITIES)), None)
