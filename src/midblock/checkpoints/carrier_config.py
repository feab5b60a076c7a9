"""carrier_config.json: what a carrier says of itself: its base, the model it was carved from, and how it was made."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midblock.base import MidblockError, write_json
from midblock.base.json_file import read_object, shown
from midblock.checkpoints.decoder_names import PARTS

CONFIG = "carrier_config.json"
FORMAT = 1
APPLIED = "midblock merge BASE BASE+CARRIER --alphas 1 writes it as a checkpoint"
AGAIN = "carve it again, or fetch it again"
LARGEST_SIDE = 2**31  # index vectors are int32
MOST_SIDES = 8
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class CarrierConfig:
    """What stands beside a carrier's tensors.

    Attributes:
        base: reference of the model that it changes.
        base_hash: that model's `Checkpoint.weight_hash()`.
        architecture: that model's `model_type`, as its config.json has it.
        tuned: reference of the model that the values are from.
        tuned_hash: that model's weight hash.
        shapes: of every parameter that has entries, as it is in memory.
        made: how it was made, as plain values (method, settings, data, …).
        parts: where the decoder's parts stood in the model it was carved in (`Anatomy.names`), so that it is found
            where it stands elsewhere, inside a multimodal model or alone; empty where it always stands there.
    """

    base: str
    base_hash: str
    architecture: str
    tuned: str
    tuned_hash: str
    shapes: Mapping[str, tuple[int, ...]]
    made: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)

    def write(self, file: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            MidblockError: the place cannot be written.
        """
        write_json(file, self.as_record())

    def as_record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "carrier_format": FORMAT,
            "base": self.base,
            "base_hash": self.base_hash,
            "architecture": self.architecture,
            "tuned": self.tuned,
            "tuned_hash": self.tuned_hash,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "made": dict(self.made),
            "parts": dict(self.parts),
        }

    @classmethod
    def read(cls, file: Path) -> CarrierConfig:
        """Read the file.

        Raises:
            MidblockError: it is missing, no JSON object, of a format that this version does not know, or an entry of it
                is not what it must be; the message names file and entry.
        """
        found = read_object(file)
        if found.get("carrier_format") != FORMAT or isinstance(found["carrier_format"], bool):
            what = f"{file} has the carrier format {shown(found.get('carrier_format'))}, this midblock reads {FORMAT}"
            raise MidblockError(what, hint="a newer midblock may read it")
        texts = {key: _text(file, found, key) for key in ("base", "architecture", "tuned")}
        hashes = {key: _hash(file, found, key) for key in ("base_hash", "tuned_hash")}
        made, parts = found.get("made", {}), found.get("parts", {})
        if not isinstance(made, dict):
            raise _wrong(file, "made", made, "a table")
        if not isinstance(parts, dict) or (parts and not all(isinstance(parts.get(part), str) for part in PARTS)):
            raise _wrong(file, "parts", parts, f"where the decoder's {', '.join(PARTS)} stand")
        return cls(**texts, **hashes, shapes=_shapes(file, found.get("shapes")), made=made, parts=parts)


def _text(file: Path, found: Mapping[str, Any], key: str) -> str:
    value = found.get(key)
    if not isinstance(value, str) or not value or len(value) > 1000 or not value.isprintable():
        raise _wrong(file, key, value, "a text of one line")
    return value


def _hash(file: Path, found: Mapping[str, Any], key: str) -> str:
    value = found.get(key)
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise _wrong(file, key, value, "a SHA-256 in hexadecimal")
    return value


def _shapes(file: Path, found: Any) -> dict[str, tuple[int, ...]]:
    if not isinstance(found, dict):
        raise _wrong(file, "shapes", found, "a table of shapes by parameter")
    for name, shape in found.items():
        sizes = isinstance(shape, list) and len(shape) <= MOST_SIDES and all(type(side) is int for side in shape)
        if not sizes or any(not 0 < side < LARGEST_SIDE for side in shape) or math.prod(shape) >= 2**62:
            raise _wrong(file, f"shapes: {shown(name)}", shape, "a list of sizes")
    return {name: tuple(shape) for name, shape in found.items()}


def _wrong(file: Path, key: str, found: Any, wanted: str) -> MidblockError:
    said = "is not there" if found is None else f"is {shown(found)}"
    return MidblockError(f"{file}: {key} {said}, it must be {wanted}", hint=AGAIN)
