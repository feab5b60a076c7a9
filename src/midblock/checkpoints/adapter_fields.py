"""The entries of adapter_config.json, each read as the type it must have; what is something else is named.

PEFT takes the file as it stands, and fails, or computes something else, where a rank is a text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midblock.base import MidblockError
from midblock.base.json_file import read_object, shown

LONGEST_TEXT = 1000  # letters
LARGEST_RANK = 100_000
LARGEST_ALPHA = 1e6  # of either sign


@dataclass(frozen=True)
class AdapterFields:
    """An adapter_config.json.

    Attributes:
        file: where it lies.
        content: what it says.
    """

    file: Path
    content: Mapping[str, Any]

    @classmethod
    def read(cls, file: Path) -> AdapterFields:
        """Read the file.

        Raises:
            MidblockError: it is missing or no JSON object.
        """
        return cls(file, read_object(file))

    def kind(self) -> str:
        """PEFT's type, in capitals."""
        found = self.content.get("peft_type")
        if not isinstance(found, str) or not found:
            raise self._wrong("peft_type", found, "a type of PEFT's, like LORA")
        return found.upper()

    def text(self, key: str) -> str | None:
        found = self.content.get(key)
        fits = isinstance(found, str) and len(found) <= LONGEST_TEXT and found.isprintable()
        if found is not None and not fits:
            raise self._wrong(key, found, "a text of one line")
        return found

    def flag(self, key: str) -> bool:
        found = self.content.get(key)
        if found is not None and not isinstance(found, bool):
            raise self._wrong(key, found, "true or false")
        return bool(found)

    def rank(self, key: str) -> int:
        return self._rank(key, self.content.get(key))

    def alpha(self, key: str) -> float:
        return self._alpha(key, self.content.get(key))

    def ranks(self, key: str) -> dict[str, int]:
        return {name: self._rank(f"{key}: {shown(name)}", value) for name, value in self._table(key).items()}

    def alphas(self, key: str) -> dict[str, float]:
        return {name: self._alpha(f"{key}: {shown(name)}", value) for name, value in self._table(key).items()}

    def texts(self, key: str) -> tuple[str, ...]:
        """Several texts, of which one may stand by itself."""
        found = self.content.get(key)
        several = [found] if isinstance(found, str) else [] if found is None else found
        if not isinstance(several, list) or not all(isinstance(each, str) for each in several):
            raise self._wrong(key, found, "a list of names")
        return tuple(several)

    def check_numbers(self, key: str) -> None:
        """Do nothing if an entry is a whole number, several, or not there."""
        found = self.content.get(key)
        several = found if isinstance(found, list) else [] if found is None else [found]
        if not all(type(each) is int and each >= 0 for each in several):
            raise self._wrong(key, found, "a list of whole numbers")

    def trains_biases(self) -> bool:
        """Whether biases are in the file too; each of PEFT's methods has a word of its own for just its layers'."""
        found = self.content.get("bias")
        if found is None or found == "none":
            return False
        if not isinstance(found, str) or not (found == "all" or found.endswith("_only")):
            raise self._wrong("bias", found, "none, all or lora_only")
        return True

    def check_start(self, key: str) -> None:
        """Do nothing if an entry says how factors start: yes, no, or the name of a way."""
        found = self.content.get(key)
        if not isinstance(found, str | bool | None):
            raise self._wrong(key, found, "true, false or the name of a start")

    def _table(self, key: str) -> dict[str, Any]:
        found = self.content.get(key)
        if found is not None and not isinstance(found, dict):
            raise self._wrong(key, found, "a table by patterns of names")
        return found or {}

    def _rank(self, key: str, found: Any) -> int:
        if type(found) is not int or not 1 <= found <= LARGEST_RANK:
            raise self._wrong(key, found, f"a whole number from 1 to {LARGEST_RANK:,}")
        return found

    def _alpha(self, key: str, found: Any) -> float:
        if type(found) not in (int, float) or not math.isfinite(found) or abs(found) > LARGEST_ALPHA:
            raise self._wrong(key, found, f"a number up to {LARGEST_ALPHA:,.0f}")
        return float(found)

    def _wrong(self, key: str, found: Any, wanted: str) -> MidblockError:
        said = "is not there" if found is None else f"is {shown(found)}"
        return MidblockError(f"{self.file}: {key} {said}, it must be {wanted}", hint="save the adapter again with PEFT")
