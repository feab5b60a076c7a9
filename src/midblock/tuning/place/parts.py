"""The reading of `target_modules`: what `attention`, `mlp`, `all`, `experts` and roles by name mean in a model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from midblock.base import MidblockError, unknown
from midblock.checkpoints import Projection
from midblock.checkpoints.roles import GATE_UP, QKV

FUSED: Mapping[str, tuple[str, ...]] = {"qkv": QKV, "gate_up": GATE_UP}
GROUPS: Mapping[str, tuple[str, ...]] = {
    "attention": ("attention",),
    "mlp": ("mlp",),
    "all": ("attention", "mlp", "other"),
}
EXPERTS = "experts"  # a word for stacks of matrices, whatever their role is called


def select(asked: str, found: Sequence[Projection]) -> list[Projection]:
    """The projections that `target_modules` means, of those that were found; a bias goes with what it is added to.

    Raises:
        MidblockError: as `select_roles`; or there are no stacked experts.
    """
    present = {each.answers[-1]: each.beside_part or each.part for each in found}
    words = [word.strip() for word in asked.split(",")]
    roles = select_roles(",".join(others), present) if (others := [word for word in words if word != EXPERTS]) else ()
    holders = {_holder(each) for each in found if each.stacked} if EXPERTS in words else set()
    if EXPERTS in words and not holders:
        raise MidblockError(f"target_modules {EXPERTS!r} matches no projection here", hint=_list(present))
    return [each for each in found if each.answers[-1] in roles or _holder(each) in holders]


def _holder(projection: Projection) -> str:
    """The path of the module that holds it."""
    return projection.name.rpartition(".")[0]


def select_roles(asked: str, present: Mapping[str, str]) -> frozenset[str]:
    """Read `target_modules`.

    Args:
        asked: `attention`, `mlp`, `all` (every projection but routers), or roles; several with commas.
        present: the roles that this model has, each with its part.

    Returns:
        The roles meant.

    Raises:
        MidblockError: a role that the model has not, or has only as part of a fused weight; a group that is empty.
    """
    chosen: set[str] = set()
    for word in (word.strip() for word in asked.split(",")):
        members = {role for role, part in present.items() if part in GROUPS[word]} if word in GROUPS else {word}
        if not members:
            raise MidblockError(f"target_modules {word!r} matches no projection here", hint=_list(present))
        if not members <= set(present):
            raise _absent(word, present)
        chosen |= members
    return frozenset(chosen)


def matches_nothing(asked: str, present: Iterable[Projection]) -> MidblockError:
    """The error where no chosen block has anything of what is asked, with what there is."""
    return MidblockError(
        f"target_modules {asked!r} matches nothing in the chosen blocks", hint=_list({each.role for each in present})
    )


def _absent(word: str, present: Collection[str]) -> MidblockError:
    holder = next((role for role, held in FUSED.items() if word in held and role in present), None)
    if holder is not None:
        return MidblockError(f"{word} is fused into {holder} in this model", hint=f"ask for {holder}")
    return unknown("target module", word, (*present, *GROUPS, EXPERTS))


def _list(roles: Collection[str]) -> str:
    return "there are: " + ", ".join(sorted(roles))
