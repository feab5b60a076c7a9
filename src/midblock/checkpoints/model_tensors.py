"""A model in memory, read as a file of tensors would be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn

from midblock.checkpoints.offloaded import held_value, parameters_once


@dataclass(frozen=True)
class ModelTensors:
    """The parameters of a model in memory, tied ones once."""

    model: nn.Module
    parameters: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> ModelTensors:
        return cls(model, {name: value.detach() for name, value in parameters_once(model).items()})

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.parameters)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.parameters[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self.parameters[name].dtype

    def file(self, name: str) -> Path | None:
        """None: it lies in no file."""
        return None

    def read(self, name: str) -> Tensor:
        return held_value(self.model, name).cpu()

    def release(self, name: str) -> None:
        """Nothing to give back: the model holds it."""

    def close(self) -> None:
        """Nothing to close."""

    def __contains__(self, name: object) -> bool:
        return name in self.parameters

    def __enter__(self) -> ModelTensors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
