"""What a method makes trainable in a model, and all that follows from that: the seam between methods and the course."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from midblock.base import LayerPlan
from midblock.checkpoints import Checkpoint, LoadSettings
from midblock.tuning.anchor.anchor import Anchor
from midblock.tuning.anchor.factors import Factors
from midblock.tuning.companion import Companion
from midblock.tuning.settings import Anchoring, CourseSettings


@dataclass(frozen=True, eq=False)
class Start:
    """What a method is given to make trainable.

    Attributes:
        causal: the base, a causal language model on the CPU, changed in place.
        plan: the blocks.
        loading: how the base was loaded.
        others: what the method opened besides the base.
    """

    causal: nn.Module
    plan: LayerPlan
    settings: CourseSettings
    loading: LoadSettings = field(default_factory=LoadSettings)
    others: Mapping[str, Checkpoint] = field(default_factory=dict)


class Trainable(ABC):
    """A model in which a method made some parameters trainable and froze all others."""

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """The outermost module: a wrapper around the causal language model, or that itself."""

    @property
    @abstractmethod
    def by_part(self) -> dict[str, int]:
        """Trained parameters by part (attention, mlp, embedding, …)."""

    @abstractmethod
    def targets(self) -> list[dict[str, Any]]:
        """What is trained, weight by weight, for `plan.json`."""

    @abstractmethod
    def check_anchor(self, settings: CourseSettings) -> None:
        """Raise MidblockError where an anchor is not defined for what is trained."""

    @abstractmethod
    def anchored(self) -> dict[str, nn.Parameter]:
        """Pretrained weights that an anchor can hold on to, by their names: 2-D, or 3-D experts."""

    @abstractmethod
    def anchor(self, factors: Mapping[str, Factors], settings: Anchoring) -> Anchor:
        """The anchor, to be made once training has put the parameters where they stay.

        Args:
            factors: of the weights that `anchored` names.
        """

    @property
    @abstractmethod
    def bytes_beside(self) -> int:
        """Memory of what is kept beside the model's parameters."""

    @abstractmethod
    def companion(self, steps: int, device: torch.device, scratch: Path) -> Companion | None:
        """What goes through training beside the optimiser; None where nothing does.

        Args:
            steps: how many the plan has.
            device: where the model is trained.
            scratch: a folder of the run for what it needs on its way.

        Raises:
            MidblockError: the plan has too few steps.
        """

    @property
    @abstractmethod
    def saved(self) -> set[str] | None:
        """Names of the tensors that a checkpoint of the result consists of; None for all of the model's."""

    @abstractmethod
    def write(self, folder: Path, state: Mapping[str, Tensor], base: Checkpoint) -> None:
        """Write the result as other programs load it.

        Args:
            folder: an existing, empty folder.
            state: the tensors that `saved` names, whole, on the CPU.
            base: what was tuned.
        """
