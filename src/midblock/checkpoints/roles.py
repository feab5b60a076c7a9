"""The names of projections in the wild, and the role that each means; names of what is no part of a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
QKV = ATTENTION[:3]
GATE_UP = MLP[:2]

# A name that means different things in attention and in the MLP is settled by `projections.py`, which sees the modules.
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
# Parts of the names of a multimodal model's towers and bridges, whose blocks are not the decoder's.
_OTHER_MODALITIES = ("vision", "visual", "audio", "image", "projector", "multi_modal")


def other_modality(name: str) -> str | None:
    """The part of a tensor or module name, before its first number, that tells of a vision or audio tower or bridge."""
    before = takewhile(lambda part: not part.isdigit(), name.split("."))
    return next((part for part in before if any(word in part.lower() for word in _OTHER_MODALITIES)), None)
