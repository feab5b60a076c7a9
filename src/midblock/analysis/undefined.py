"""Numbers that cannot be computed: each costs its row, and a note says which metric, model and layers."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from midblock.analysis.layers_in_words import layers_in_words
from midblock.base import Estimate
from midblock.metrics.metric import is_estimate


@dataclass(frozen=True)
class Undefined:
    """What was asked for and has no value.

    Attributes:
        layers: by metric, model and the number of prompts it rests on.
    """

    layers: dict[tuple[str, str, int], list[int]] = field(default_factory=lambda: defaultdict(list))

    def takes(self, metric: str, model: str, layer: int, estimate: Estimate) -> bool:
        """Whether a number has no value, which is remembered; of its references (nulls, floors) it is not."""
        if math.isfinite(estimate.value):
            return False
        if is_estimate(metric):
            self.layers[metric, model, estimate.n].append(layer)
        return True

    def notes(self) -> list[str]:
        """One for each metric and model."""
        return [f"{said}: left out." for said in self.told()]

    def told(self) -> list[str]:
        """What has no value, and where."""
        return [
            f"{metric} of {model} is not defined at {layers_in_words(layers)} ({_reason(n)})"
            for (metric, model, n), layers in self.layers.items()
        ]

    def records(self, suffix: str = "") -> list[dict[str, Any]]:
        """The same for `run.json`.

        Args:
            suffix: of the metrics' names, where these are another sample's.
        """
        return [
            {"metric": metric + suffix, "model": model, "layers": sorted(layers)}
            for (metric, model, _), layers in self.layers.items()
        ]


def _reason(n: int) -> str:
    return f"of {n} prompts too few differ there" if n else "no prompt has what it needs"
