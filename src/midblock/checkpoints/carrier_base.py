"""Which base a carrier is put on, and whether it is the one that it was carved from."""

from __future__ import annotations

from midblock.base import MidblockError, user_path
from midblock.checkpoints.carrier import Carrier

SHOWN = 12  # letters of a hash in a message


def base_of(carrier: Carrier) -> str:
    """The reference of the base that a carrier names; a path may be meant from the carrier's own folder.

    Raises:
        MidblockError: the config names a place that cannot be looked at.
    """
    named = carrier.config.base
    try:
        if carrier.folder is not None and not user_path(named).exists():
            beside = carrier.folder / user_path(named)
            return str(beside) if beside.exists() else named
    except MidblockError as error:
        what = f"the base of {carrier.name} was not found: {error.what}"
        raise MidblockError(what, hint="name it: BASE+CARRIER") from error
    return named


def check_base(carrier: Carrier, found: str, model: str) -> None:
    """Do nothing if a carrier was carved from these very weights.

    Args:
        found: the weights' hash.
        model: what to call them.

    Raises:
        MidblockError: naming both.
    """
    config = carrier.config
    if config.base_hash != found:
        what = f"{carrier.name} was carved from {config.base} (weights {config.base_hash[:SHOWN]}…)"
        hint = "a carrier's values are right on its own base alone: name that, BASE+CARRIER"
        raise MidblockError(f"{what}, {model} has other weights ({found[:SHOWN]}…)", hint=hint)
