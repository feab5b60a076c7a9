"""One file of pickled weights, read only when the user allowed it, through the same door as safetensors."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor

from midblock.base import MidblockError
from midblock.base.plain_file import check_plain_file
from midblock.checkpoints.safetensors_file import Entry


class PickledFile:
    """A `torch.save` file with a flat state dict; torch's restricted unpickler builds tensors and nothing else.

    Attributes:
        path: the file.
        entries: tensor name to type and shape, in the order of the state dict.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, mapped where its format allows (files of before torch 1.6 are read whole).

        Raises:
            MidblockError: when the file is broken, or holds something else than a flat state dict.
        """
        self.path = path
        self._state = _load(path)
        self.entries = {
            name: Entry(tensor.dtype, tuple(tensor.shape), 0, tensor.nbytes) for name, tensor in self._state.items()
        }

    def read(self, name: str) -> Shaped[Tensor, "*shape"]:
        return self._state[name]

    def release(self, name: str) -> None:
        """Do nothing: torch keeps the mapping to itself."""

    def close(self) -> None:
        self._state = {}


def _load(path: Path) -> dict[str, Tensor]:
    check_plain_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        hint = "it is corrupt, or wants to run code, which midblock never lets it; convert it to safetensors"
        raise MidblockError(f"cannot read {path} as plain tensors", hint=hint) from error
    except (OSError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise MidblockError(f"{path} is truncated or corrupt", hint="fetch it again") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise MidblockError(f"{path} holds no state dict of tensors", hint="convert the checkpoint to safetensors")
    return state
