"""Models are lent to a run: in evaluation mode while it lasts, given back as they came; a lack of memory is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from midblock.base import MidblockError
from midblock.checkpoints import Pair

GO_ON = "--resume goes on"


@contextmanager
def lent(pair: Pair, *, tries: str) -> Iterator[None]:
    """Give models that were in memory before back in the mode they came in.

    Args:
        tries: what helps where the accelerator's memory is too small.

    Raises:
        MidblockError: out of memory.
    """
    given = [variant.loaded for variant in pair if variant.loaded is not None]
    modes = [(module, module.training) for model in given for module in model.modules()]
    try:
        with memory_told(tries):
            yield
    finally:
        _restore(modes)


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside the `with`; each module's own mode is given back afterwards."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        _restore(modes)


@contextmanager
def memory_told(tries: str) -> Iterator[None]:
    """Turn the accelerator's error into one line.

    Raises:
        MidblockError: out of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MidblockError("out of memory on the accelerator", hint=f"{tries}; {GO_ON}") from error


def _restore(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training
