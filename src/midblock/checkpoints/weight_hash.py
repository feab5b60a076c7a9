"""The hash of a folder's weights, computed once for as long as its files stay as they are.

A carrier is held against its base's hash wherever it is opened, and a run records it: reading a model's weights takes
seconds. Cost: the files' sizes and ages are looked at each time.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from midblock.base.files import stamps
from midblock.checkpoints.tensors import TensorReader, content_hash
from midblock.checkpoints.weight_files import find_weight_files

KEPT = 8  # folders


def hash_of_files(folder: Path, *, allow_pickle: bool = False) -> str:
    """SHA-256 of all tensors in a folder, as of `content_hash`.

    Raises:
        MidblockError: as `TensorReader.open`.
    """
    found = find_weight_files(folder, allow_pickle=allow_pickle)
    seen = tuple(tuple(stamp) for stamp in stamps(found.files))
    return _hash(folder.resolve(), allow_pickle, tuple(found.index.items()), seen)


@lru_cache(maxsize=KEPT)
def _hash(folder: Path, allow_pickle: bool, index: object, seen: object) -> str:
    with TensorReader.open(folder, allow_pickle=allow_pickle) as tensors:
        return content_hash(tensors)
