"""Parameters by name, wherever they are: in a model, in its files, or in a table."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Shaped
from torch import Tensor, nn

from midblock.base import MidblockError
from midblock.checkpoints.effective import EffectiveTensors
from midblock.checkpoints.offloaded import held_value, parameters_once

Weights = nn.Module | EffectiveTensors | Mapping[str, Tensor]


def parameter_in(weights: Weights, name: str) -> Shaped[Tensor, "*shape"]:
    """A parameter's value.

    Raises:
        MidblockError: there is none of that name.
    """
    try:
        if isinstance(weights, EffectiveTensors):
            return weights.read(name)
        return held_value(weights, name) if isinstance(weights, nn.Module) else weights[name]
    except (KeyError, AttributeError, ValueError) as error:
        raise MidblockError(f"the base has no parameter {name}", hint="give the carrier's own base") from error


def parameter_names(weights: Weights) -> tuple[str, ...]:
    """Every parameter, tied ones once."""
    if isinstance(weights, EffectiveTensors):
        return weights.names
    return tuple(parameters_once(weights) if isinstance(weights, nn.Module) else weights)
