"""Parts of a block: which projections `attention`, `mlp` and `all` mean, and the reading of `target_modules`."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from midblock.base import MidblockError, unknown
from midblock.checkpoints import ATTENTION, MLP
from midblock.checkpoints.roles import GATE_UP, QKV

FUSED: Mapping[str, tuple[str, ...]] = {"qkv": QKV, "gate_up": GATE_UP}
GROUPS: Mapping[str, tuple[str, ...]] = {
    "attention": ("attention",),
    "mlp": ("mlp",),
    "all": ("attention", "mlp", "other"),
}
_KNOWN: Mapping[str, str] = {
    **dict.fromkeys((*ATTENTION, "qkv"), "attention"),
    **dict.fromkeys((*MLP, "gate_up"), "mlp"),
    **{part: part for part in ("router", "norm", "bias", "embedding", "position_embedding", "head")},
}
# words in the path of a projection whose role has no name of its own (a latent-attention or state-space layer's)
_ATTENTION_WORDS = ("attn", "attention")
_MLP_WORDS = ("mlp", "feed_forward", "ffn", "expert", "moe")


def part_of(role: str) -> str:
    """The part of the model that a role belongs to.

    Args:
        role: `Place.module`.

    Returns:
        `attention`, `mlp`, `router`, `norm`, `bias`, `embedding`, `position_embedding`, `head` or `other`.
    """
    if role in _KNOWN:
        return _KNOWN[role]
    if role.endswith("gate"):
        return "router"  # a shared expert's: one output
    if any(word in role for word in _ATTENTION_WORDS):
        return "attention"
    return "mlp" if any(word in role for word in _MLP_WORDS) else "other"


def select_roles(asked: str, present: Collection[str]) -> frozenset[str]:
    """Read `target_modules`.

    Args:
        asked: `attention`, `mlp`, `all` (every projection but routers), or roles; several with commas.
        present: the roles that this model has.

    Returns:
        The roles meant.

    Raises:
        MidblockError: a role that the model has not, or has only as part of a fused weight; a group that is empty.
    """
    chosen: set[str] = set()
    for word in (word.strip() for word in asked.split(",")):
        members = {role for role in present if part_of(role) in GROUPS[word]} if word in GROUPS else {word}
        if not members:
            raise MidblockError(f"target_modules {word!r} matches no projection here", hint=_list(present))
        if not members <= set(present):
            raise _absent(word, present)
        chosen |= members
    return frozenset(chosen)


def _absent(word: str, present: Collection[str]) -> MidblockError:
    holder = next((role for role, held in FUSED.items() if word in held and role in present), None)
    if holder is not None:
        return MidblockError(f"{word} is fused into {holder} in this model", hint=f"ask for {holder}")
    return unknown("target module", word, (*present, *GROUPS))


def _list(roles: Collection[str]) -> str:
    return "there are: " + ", ".join(sorted(roles))
