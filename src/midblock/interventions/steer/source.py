"""What `--from` names: a tuned model, a run folder that compares one with its base, or directions already found."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midblock.base import MidblockError, user_path
from midblock.checkpoints import Pair
from midblock.interventions.steer.directions import Directions
from midblock.runs.record import read_config, read_record

FILE = "directions.safetensors"
MODELS = ("config.json", "adapter_config.json", "carrier_config.json", "adapter", "carrier", "model")


@dataclass(frozen=True)
class DirectionSource:
    """Where directions come from.

    Attributes:
        reference: as the user named it.
        tuned: reference of the tuned model.
        base: the base that a run folder was about; None for a plain model.
        ignored: tuned models of that run that are left aside.
        earlier: the run of `midblock steer` whose directions are used again, None to estimate them.
        settings: that run's settings.
    """

    reference: str
    tuned: str
    base: str | None = None
    ignored: tuple[str, ...] = ()
    earlier: Path | None = None
    settings: dict[str, Any] | None = None

    @classmethod
    def of(cls, reference: str) -> DirectionSource:
        """Find out what a reference names.

        Raises:
            MidblockError: a run folder that names no tuned model, or is unfinished or broken.
        """
        folder = user_path(reference.strip())
        if not (folder / "run.json").is_file() or any((folder / name).exists() for name in MODELS):
            return cls(reference, reference)
        record = read_record(folder)
        config = read_config(folder, hint="--from wants a whole run folder, or a tuned model")
        if record.get("verb") == "steer":
            return cls._of_steering(reference, folder, record, config)
        tuned = config.get("tuned") or [None]
        first, *others = tuned if isinstance(tuned, list) else [tuned]
        if not first or first == "in memory":
            what = f"{reference} is a run of `midblock {record.get('verb')}` that names no tuned model"
            raise MidblockError(what, hint="--from wants a tuned model, or the run folder of `midblock analyze`")
        return cls(reference, str(first), config.get("base"), tuple(map(str, others)))

    @classmethod
    def _of_steering(
        cls, reference: str, folder: Path, record: dict[str, Any], config: dict[str, Any]
    ) -> DirectionSource:
        tuned = _tuned_models(record.get("models"))
        if record.get("status") != "done" or not tuned:
            raise MidblockError(f"{reference} is unfinished: it holds no directions yet", hint="finish it: --resume")
        return cls(reference, tuned[0], config.get("base"), earlier=folder, settings=config)

    def directions(self, pair: Pair) -> Directions | None:
        """The directions found earlier, None where there are none.

        Raises:
            MidblockError: they are not there, or fit another model.
        """
        if self.earlier is None:
            return None
        found = Directions.read(self.earlier / FILE)
        width = int(pair.base.config.hidden_size)
        if (len(found), found.width) != (pair.blocks, width):
            what = f"the directions in {self.reference} are for {len(found)} blocks of {found.width} channels"
            raise MidblockError(what, hint=f"this model has {pair.blocks} of {width}")
        return found

    @property
    def places(self) -> tuple[Path, ...]:
        """The file or folder that it names, if it names one."""
        place = user_path(self.reference.strip())
        return (place,) if place.exists() else ()

    def content(self) -> dict[str, str]:
        """What tells a change of the directions found earlier."""
        if self.earlier is None:
            return {}
        return {f"the directions in {self.reference}": hashlib.sha256((self.earlier / FILE).read_bytes()).hexdigest()}

    def notes(self, base: str) -> list[str]:
        """What a reader must know about them."""
        found = []
        if self.base is not None and self.base != base:
            found.append(f"{self.reference} is about the base {self.base}; what is steered here is {base}.")
        if self.ignored:
            left = ", ".join(self.ignored)
            found.append(f"{self.reference} compares several tuned models; {self.tuned} was taken, and not {left}.")
        return found


def _tuned_models(models: Any) -> list[str]:
    """References of the tuned models that `run.json` lists."""
    listed = [model for model in models if isinstance(model, dict)] if isinstance(models, list) else []
    return [str(model["reference"]) for model in listed if model.get("role") == "tuned" and model.get("reference")]
