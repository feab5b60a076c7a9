"""Training examples' activations on disk, memory-mapped: written once, read in every later epoch.

Files rather than memory, since they outgrow it: the page cache keeps what fits, and a machine's processes share it.
What another process left there is compared with a checksum when it is first read. Cost: tokens · D numbers and 8 bytes
an example. Described in docs/tuning/prefix.md.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from midblock.base import MidblockError, write_json
from midblock.base.files import write_failure

STATES, WHOLE, HEADER = "states.bin", "whole.bin", "store.json"


@dataclass(frozen=True, eq=False)
class PrefixStore:
    """The residual stream of N examples at one depth; made by `PrefixStore.open`.

    Attributes:
        folder: where its files lie.
        lengths: real tokens of each example.
        starts: each example's first row in `states`.
        states: the mapped file, one row a token.
        whole: the mapped file of marks, 0 where an example's states are not all there, else 1 + their CRC-32.
        believed: examples whose states this process wrote, or compared with their mark.
    """

    folder: Path
    lengths: Int[Tensor, "N"]
    starts: Int[Tensor, "N"]
    states: Float[Tensor, "tokens D"]
    whole: Int64[Tensor, "N"]
    believed: Bool[Tensor, "N"] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "believed", torch.zeros(len(self.lengths), dtype=torch.bool))

    @classmethod
    def open(cls, folder: Path, lengths: Sequence[int], width: int, dtype: torch.dtype, key: str) -> PrefixStore:
        """Map the store in `folder`: what is there under the same key is used again, anything else is replaced.

        Args:
            lengths: real tokens of each example, in the order of their indices.
            width: D, of the residual stream.
            dtype: the activations' own, so that they come back bit by bit.
            key: names all that the states depend on beside the examples' lengths (weights, tokens, depth).

        Raises:
            MidblockError: no tokens at all, the disk is full, or the folder cannot be written.
        """
        tokens = sum(lengths)
        if tokens < 1:
            raise MidblockError("the training examples hold no tokens to keep activations of")
        sizes = {STATES: tokens * width * dtype.itemsize, WHOLE: len(lengths) * torch.int64.itemsize}
        header = _header(lengths, width, dtype, key)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "lock"):
                if not _matches(folder, header, sizes):
                    _start_over(folder, header, sizes)
                states = torch.from_file(str(folder / STATES), shared=True, size=tokens * width, dtype=dtype)
                whole = torch.from_file(str(folder / WHOLE), shared=True, size=len(lengths), dtype=torch.int64)
        except (OSError, RuntimeError) as error:  # torch reports a refused mapping as a RuntimeError
            raise write_failure(folder, error) from error
        counts = torch.tensor(lengths)
        starts = counts.cumsum(0) - counts
        return cls(folder=folder, lengths=counts, starts=starts, states=states.view(tokens, width), whole=whole)

    @property
    def bytes(self) -> int:
        """Size on disk: tokens · D · bytes a number, and 8 bytes an example."""
        return self.states.nbytes + self.whole.nbytes

    def has(self, index: Int[Tensor, "B"]) -> bool:
        """Whether every one of these examples is whole; one that was damaged since it was written is not any more."""
        index = index.cpu()
        for example in index[~self.believed[index]].tolist():
            if self.whole[example]:
                self.believed[example] = self.whole[example] == self._mark(example)
                self.whole[example] *= self.believed[example]
        return bool(self.whole[index].all())

    def read(self, index: Int[Tensor, "B"], tokens: int) -> Float[Tensor, "B T D"]:
        """Give the states of examples that are whole, padded on the right with zeros to T = `tokens`.

        Raises:
            ValueError: an example is not whole, or longer than `tokens`.
        """
        if not self.has(index):
            raise ValueError("an example was asked for that has not been written")
        if (longest := int(self.lengths[index.cpu()].max())) > tokens:
            raise ValueError(f"an example of {longest} tokens does not fit into {tokens}")
        batch = self.states.new_zeros(len(index), tokens, self.states.shape[1])
        for row, example in enumerate(index.tolist()):
            part = self._part(example)
            batch[row, : len(part)] = part
        return batch

    def write(
        self, index: Int[Tensor, "B"], attention_mask: Int[Tensor, "B T"], states: Float[Tensor, "B T D"]
    ) -> None:
        """Keep the states of those of these examples that are not whole yet.

        Raises:
            MidblockError: states of another type or width, or a mask that does not fit the examples.
        """
        self.check(index, attention_mask)
        if states.dtype != self.states.dtype or states.shape[-1] != self.states.shape[1]:
            expected = f"{self.states.shape[1]} numbers of {self.states.dtype}"
            got = f"{states.shape[-1]} of {states.dtype}"
            raise MidblockError(f"a token's activations were to be {expected}, they are {got}", hint="prefix_cache off")
        on_cpu = states.detach().cpu()
        for row, example in enumerate(index.tolist()):
            if not self.whole[example]:
                part = self._part(example)
                part.copy_(on_cpu[row, : len(part)])
                # Last, so that a process killed above leaves an example that counts as missing.
                self.whole[example] = self._mark(example)
                self.believed[example] = True

    def check(self, index: Int[Tensor, "B"], attention_mask: Int[Tensor, "B T"]) -> None:
        """Make sure that each row of the mask is its example's length of ones, then zeros.

        Raises:
            MidblockError: it is not; the example is named.
        """
        lengths = self.lengths[index.cpu()][:, None]
        expected = torch.arange(attention_mask.shape[1])[None] < lengths
        fits = (expected == attention_mask.cpu().bool()).all(1) & (lengths[:, 0] <= attention_mask.shape[1])
        if not fits.all():
            row = int(fits.int().argmin())
            what = f"example {int(index[row])} was to be {int(lengths[row])} tokens, padded on the right"
            raise MidblockError(f"{what}; its mask says otherwise", hint="prefix_cache off")

    def _mark(self, example: int) -> int:
        return 1 + zlib.crc32(self._part(example).view(torch.uint8).numpy().data)

    def _part(self, example: int) -> Float[Tensor, "tokens D"]:
        start = int(self.starts[example])
        return self.states[start : start + int(self.lengths[example])]


def _header(lengths: Sequence[int], width: int, dtype: torch.dtype, key: str) -> dict[str, Any]:
    digest = hashlib.sha256(json.dumps(list(lengths)).encode()).hexdigest()
    return {"key": key, "examples": len(lengths), "lengths": digest, "width": width, "dtype": str(dtype)}


def _matches(folder: Path, header: dict[str, Any], sizes: dict[str, int]) -> bool:
    try:
        found = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        return found == header and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (FileNotFoundError, ValueError, RecursionError):
        return False


def _start_over(folder: Path, header: dict[str, Any], sizes: dict[str, int]) -> None:
    """Replace the files; the header goes first and comes last, so that it never stands beside files of another key."""
    _remove(folder)
    try:
        for name, size in sizes.items():
            _reserve(folder / name, size)
        write_json(folder / HEADER, header)
    except (OSError, MidblockError):
        _remove(folder)
        raise


def _remove(folder: Path) -> None:
    # Unlinked, never cut short: another process may still have the old ones mapped.
    for name in (HEADER, STATES, WHOLE):
        (folder / name).unlink(missing_ok=True)


def _reserve(path: Path, size: int) -> None:
    """Make a file of zeros whose blocks are there: a full disk shows here, not as a bus error in mid-run."""
    with path.open("xb") as file:
        if hasattr(os, "posix_fallocate"):
            try:
                return os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise
        file.truncate(size)
    return None
