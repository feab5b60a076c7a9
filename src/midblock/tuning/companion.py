"""What goes through training beside the optimiser: parameters of its own, moved in its own way.

The loop asks for it and never knows which method it belongs to. A method without one says None.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Companion(ABC):
    """What a method does in each step of the optimiser, and what a checkpoint must hold of it."""

    @abstractmethod
    def before_step(self, nll: float) -> None:
        """Between the last backward pass of a step and clipping: read gradients, and change them where that is due.

        Args:
            nll: −ln p per target token of the step, over all processes, which all call this with equal gradients.
        """

    @abstractmethod
    def after_step(self, optimizer: Any) -> None:
        """After the optimiser moved the model's parameters: move the own ones, with their own optimiser.

        Args:
            optimizer: the model's; its `state` by parameter may be changed.
        """

    @abstractmethod
    def line(self) -> Mapping[str, Any]:
        """What a line of `log.jsonl` says of it."""

    @abstractmethod
    def save(self, folder: Path) -> Mapping[str, Any]:
        """Write into a checkpoint what the model's own weights do not tell; the main process calls it.

        Returns:
            Small state, as JSON values.
        """

    @abstractmethod
    def load(self, folder: Path, carried: Mapping[str, Any]) -> None:
        """Take up what `save` left; the model's own weights are loaded by the loop."""
