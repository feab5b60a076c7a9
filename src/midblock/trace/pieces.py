"""Rows on disk piece by piece, so that a killed pass goes on where it stopped."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from midblock.base import MidblockError, replace_atomically
from midblock.trace.rows import RowStore

SAVE_SECONDS = 30.0


@dataclass
class Pieces:
    """The state of a pass over numbered steps.

    Attributes:
        store: the rows.
        folder: where pieces go, None to keep rows in memory only.
        seconds: least time between two pieces.
    """

    store: RowStore
    folder: Path | None
    seconds: float = SAVE_SECONDS
    saved: float = field(default_factory=time.monotonic)

    def restore(self) -> int:
        """Take in the pieces of an earlier pass; return the number of steps they cover.

        Raises:
            MidblockError: a piece that cannot be read.
        """
        files = sorted(file for file in self.folder.glob("*.safetensors") if _numbered(file)) if self.folder else []
        for file in files:
            try:
                self.store.restore(load_file(file))
            except (SafetensorError, OSError) as error:
                raise MidblockError(f"cannot read {file}: {error}", hint="start again with --overwrite") from error
        return int(files[-1].stem) if files else 0

    def step(self, done: int, *, last: bool = False) -> None:
        """Tell that `done` steps are done; writes a piece when it is time, and behind the last."""
        if self.folder is None or not (last or time.monotonic() - self.saved >= self.seconds):
            return
        self.saved = time.monotonic()
        piece = self.store.take_unsaved()
        if not piece:  # the last batch's own save came just before: an empty piece must not replace it
            return
        with replace_atomically(self.folder / f"{done:06d}.safetensors") as path:
            # safetensors' own writing hides a full disk in an error of its kind
            path.write_bytes(save({name: values.contiguous() for name, values in piece.items()}))


def _numbered(file: Path) -> bool:
    """Whether a file is a piece; a run may keep other tensors in the same folder."""
    return file.stem.isascii() and file.stem.isdigit()
