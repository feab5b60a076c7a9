"""What kind of module a parameter lies in: attention, linear attention, MLP, router, norm, or something else.

Names and classes of the modules between block and parameter tell. The outermost that says anything decides, for what
lies inside serves it: the fc1 of a gated norm is no MLP's. A name counts where it ends in a word (`self_attn`, but
not `attn_hyper_connection`), a class where it holds one and is no container of several.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import nn

# Classes whose names, and those of their modules, say nothing, in small letters: the kind of module that each is.
KINDS: Mapping[str, str] = {}
_ATTENTION = re.compile(r"(^|_)(attn|att|attention)$")
_MLP = re.compile(r"(^|_)(mlps?|ffns?|ff|feed_?forward|experts?|moe|mlp_block)$")
# classes of attention without a softmax over the tokens; a class that says one of these is not softmax attention
_LINEAR = ("linear", "delta", "lightning", "retention", "rwkv", "lstm", "recurrent")
# classes that hold a whole block, or its parts side by side, and so say nothing
_CONTAINERS = ("layer", "block")
# of what mixes tokens in another way, whatever its path is called
_OTHER_MIXERS = ("mamba", "conv", "lstm", "ssm", "rglru", "recurrentblock", "hyperconnection")


def kinds_on(path: Sequence[str], classes: Sequence[str]) -> list[str]:
    """The kind of each module from the block inward: attention, linear attention, mlp, router, norm, mixer, or ""."""
    found: list[str] = []
    for name, kind in zip(path, classes, strict=True):
        inside_attention = any("attention" in each for each in found)
        found.append("" if name.isdigit() else _kind(name, kind, inside_attention))
    return found


def classes_on(name: str, depth: int, modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Class names, in small letters, of the last `depth` modules on the way to a parameter; "" where there is none."""
    parts = name.split(".")
    paths = (".".join(parts[:end]) for end in range(len(parts) - depth, len(parts)))
    return tuple(type(modules[path]).__name__.lower() if path in modules else "" for path in paths)


def _kind(name: str, kind: str, inside_attention: bool) -> str:
    if kind in KINDS:
        return KINDS[kind]
    if is_norm(name, kind):
        return "norm"
    if "router" in kind or kind.endswith("gating") or name == "router" or (name == "gate" and not inside_attention):
        return "router"
    if "indexer" in kind or name == "indexer":  # picks the tokens that attention sees, and no gradient reaches it
        return "router"
    says = not kind.endswith(_CONTAINERS)
    if _ATTENTION.search(name) or (says and ("attention" in kind or "attn" in kind)):
        linear = name.startswith("linear") or any(word in kind for word in _LINEAR)
        return "linear attention" if linear else "attention"
    if _MLP.search(name) or (says and ("mlp" in kind or "feedforward" in kind)):
        return "mlp"
    if any(word in kind for word in _OTHER_MIXERS):
        return "mixer"
    return "mlp" if says and ("expert" in kind or "moe" in kind) else ""


def is_norm(name: str, kind: str) -> bool:
    """Whether a module is a norm, by its name and its class in small letters."""
    if "attention" in kind:  # DBRX keeps both in one module
        return False
    return "norm" in name.lower() or bool(re.match(r"ln(_|\d|$)", name)) or "norm" in kind
