"""Seal: what a file that is kept between two lives of a run says of itself, so that nothing is believed unseen.

It names the format, whose the file is (the fingerprint of a run and its plan) and what it holds, under a checksum of
all that and of the content. A file whose checksum does not fit is damaged: what it held is made again. One that is
whole and says that it is somebody else's is refused: only a person can know how it came there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midblock.base.errors import MidblockError

FORMAT = 1
AWAY = "remove it, or begin again with --overwrite"


class DamagedError(Exception):
    """A kept file is not what its seal says: cut short, changed, or never whole."""


def fingerprint(*parts: Any) -> str:
    """SHA-256 of plain values, the same in every process."""
    return hashlib.sha256(_plain(parts)).hexdigest()


@dataclass(frozen=True)
class Seal:
    """What is written into a kept file.

    Attributes:
        owner: fingerprint of the run, and of the plan that the file is part of.
        holds: what lies in it, as plain values.
        checksum: of these and of the content.
    """

    owner: str
    holds: Mapping[str, Any]
    checksum: str

    @classmethod
    def of(cls, owner: str, holds: Mapping[str, Any], content: Iterable[Any]) -> Seal:
        """Seal a file.

        Args:
            content: its bytes, in parts; anything that has a buffer.
        """
        return cls(owner, holds, _checksum(FORMAT, owner, holds, content))

    def as_record(self) -> dict[str, Any]:
        """For JSON."""
        return {"format": FORMAT, "owner": self.owner, "holds": dict(self.holds), "checksum": self.checksum}

    @classmethod
    def check(cls, record: Any, file: Path, content: Iterable[Any], owner: str) -> Mapping[str, Any]:
        """What a file holds, if it is whole and its owner's.

        Args:
            record: its seal as it was read, None where it has none.
            content: as in `of`.

        Raises:
            DamagedError: it has changed since it was sealed.
            MidblockError: it is whole, and of another run or of another format.
        """
        if record is None:
            what = f"{file} does not say what it holds: no run of this version of midblock kept it"
            raise MidblockError(what, hint=AWAY)
        told = record if isinstance(record, dict) else {}
        layout, theirs, holds = (told.get(name) for name in ("format", "owner", "holds"))
        if told.get("checksum") != _checksum(layout, theirs, holds, content) or not isinstance(holds, dict):
            raise DamagedError(f"{file.name} is damaged")
        if layout != FORMAT:
            what = f"{file} has format {layout}, this version of midblock reads {FORMAT}"
            raise MidblockError(what, hint=AWAY)
        if theirs != owner:
            what = f"{file} was kept by another run, or for another plan than this one's"
            raise MidblockError(what, hint=AWAY)
        return holds


def _checksum(layout: Any, owner: Any, holds: Any, content: Iterable[Any]) -> str:
    digest = hashlib.sha256(_plain([layout, owner, holds]))
    for part in content:
        digest.update(part)
    return digest.hexdigest()


def _plain(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()
