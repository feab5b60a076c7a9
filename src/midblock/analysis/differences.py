"""What of a tuned model differs from its base at all, as far as a LayerTable tells: weights, states, predictions.

"Where in depth" is another question (`summary`): a model whose embedding alone was tuned has no depth of change, and
differs nevertheless. Zero is exact here: the same arithmetic on the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from midblock.base import LayerTable

if TYPE_CHECKING:
    import pandas as pd

WEIGHTS = ("delta_rel", "delta_fro", "changed_fraction")
STATES = ("change_intensity_relative", "change_increment", "change_own", "change_intensity", "mean_shift")
GROUPS = frozenset({"block", "attention", "mlp"})  # sums over other rows


@dataclass(frozen=True)
class Part:
    """Weights outside the blocks that moved.

    Attributes:
        name: in words.
        relative: `delta_rel`; NaN where it is not known.
        share: of its values, those that differ; NaN where it is not known.
    """

    name: str
    relative: float
    share: float


@dataclass(frozen=True)
class Differences:
    """What of one tuned model differs.

    Attributes:
        weights: whether weights were compared.
        roles: roles of the blocks' weights that moved.
        share: of the values of the blocks that moved, those that differ; NaN where it is not known.
        outside: parts before and behind the blocks that moved.
        states: whether states were compared.
        layers: layers whose states differ, each with its `change_intensity_relative` (NaN where it is not known).
        divergence: largest logit-lens KL (nats), 0 where the predictions are the same; None where they were not read.
    """

    weights: bool
    roles: frozenset[str]
    share: float
    outside: tuple[Part, ...]
    states: bool
    layers: dict[int, float]
    divergence: float | None

    @classmethod
    def of(cls, table: LayerTable, model: str) -> Differences:
        """Of one tuned model of a table."""
        frame = table.frame[table.frame.model == model]
        weights = frame[frame.metric.isin(WEIGHTS)]
        states = frame[frame.metric.isin(STATES)]
        moved = weights[weights.value != 0]  # NaN is a change of zeros
        inside = moved.layer.between(0, table.blocks - 1)
        return cls(
            weights=len(weights) > 0,
            roles=frozenset(moved[inside].module) - GROUPS or frozenset(moved[inside].module),
            share=_share_of_blocks(weights, moved[inside]),
            outside=_parts(moved[~inside], table.blocks),
            states=len(states) > 0,
            layers=_layers(states),
            divergence=_divergence(frame),
        )

    @property
    def anywhere(self) -> bool:
        """Whether anything differs."""
        return bool(self.roles or self.outside or self.layers or self.divergence)


def _share_of_blocks(weights: pd.DataFrame, moved: pd.DataFrame) -> float:
    """Of all values of the blocks that moved."""
    layers = set(moved.layer)
    rows = weights[(weights.metric == "changed_fraction") & (weights.module == "block") & weights.layer.isin(layers)]
    total = int(rows.n.sum())
    return float((rows.value * rows.n).sum()) / total if total else math.nan


def _parts(moved: pd.DataFrame, blocks: int) -> tuple[Part, ...]:
    places = dict.fromkeys(zip(moved.layer, moved.module, strict=True))
    return tuple(
        Part(
            _name(str(module), int(layer), blocks),
            _value(moved, "delta_rel", layer, module),
            _value(moved, "changed_fraction", layer, module),
        )
        for layer, module in sorted(places)
    )


def _name(module: str, layer: int, blocks: int) -> str:
    if module in ("embedding", "position_embedding", "head"):
        return module.replace("_", " ")
    if module == "norm" and layer == blocks:
        return "final norm"
    return f"{module} {'before' if layer < 0 else 'behind'} the blocks"


def _value(frame: pd.DataFrame, metric: str, layer: int, module: str) -> float:
    rows = frame[(frame.metric == metric) & (frame.layer == layer) & (frame.module == module)]
    return float(rows.value.iloc[0]) if len(rows) else math.nan


def _layers(states: pd.DataFrame) -> dict[int, float]:
    layers: Sequence[int] = sorted(set(states[states.value > 0].layer))
    return {int(layer): _value(states, "change_intensity_relative", layer, "residual") for layer in layers}


def _divergence(frame: pd.DataFrame) -> float | None:
    """KL by preference; where only agreement was asked for, NaN for a disagreement."""
    kl, agreement = (frame[frame.metric == name].value for name in ("logit_kl", "logit_agreement"))
    if len(kl):
        return float(kl.max())
    return (math.nan if bool((agreement < 1).any()) else 0.0) if len(agreement) else None
