"""What an unfinished evaluation has found, a file a step, so that a killed run goes on behind the last of them.

A file says whose it is under a checksum (`base.seal`): a damaged one is made again, another run's is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midblock.base import MidblockError, replace_atomically
from midblock.base.seal import DamagedError, Seal

Rows = list[dict[str, Any]]


@dataclass
class KeptSteps:
    """Rows by step.

    Attributes:
        folder: where they lie; None to keep nothing.
        owner: fingerprint of the run and of its steps.
        notes: what a reader must know of files that were damaged.
    """

    folder: Path | None
    owner: str
    notes: list[str] = field(default_factory=list)

    def rows(self, name: str) -> Rows | None:
        """What a step found; None where it is to be done.

        Raises:
            MidblockError: another run kept it, or the system does not let it be read.
        """
        file = self._file(name)
        if file is None or not file.exists():
            return None
        try:
            return _read(file, self.owner, name)
        except DamagedError:
            self.notes.append(f"Of what was kept when the run was stopped, {file.name} was damaged: it was done again.")
            return None

    def keep(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Write what a step found.

        Raises:
            MidblockError: the disk is full, or the place cannot be written.
        """
        if (file := self._file(name)) is None:
            return
        content = json.dumps(list(rows), allow_nan=False)
        seal = Seal.of(self.owner, {"step": name}, [content.encode()])
        with replace_atomically(file) as path:
            path.write_text(json.dumps({"seal": seal.as_record(), "rows": content}), encoding="utf-8")

    def once(self, name: str, work: Callable[[], Sequence[dict[str, Any]]]) -> Rows:
        """What a step found, now or before."""
        found = self.rows(name)
        if found is None:
            found = list(work())
            self.keep(name, found)
        return found

    def _file(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{name}.json"


def _read(file: Path, owner: str, name: str) -> Rows:
    try:
        whole = json.loads(file.read_bytes())
        content, record = whole["rows"], whole["seal"]
        text = content.encode()
    except OSError as error:
        raise MidblockError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{file.name} is damaged") from error
    if Seal.check(record, file, [text], owner).get("step") != name:
        raise DamagedError(f"{file.name} is a copy of another step")
    found: Rows = json.loads(content)
    return found
