"""Carrier: a sparse part of a fine-tuning's change that carries its effect, as values for some entries of the weights.

Its folder holds `carrier.safetensors` and `carrier_config.json`; in memory it is the same without a folder. Opening
reads the file once, to check it; nothing is applied before all of it was checked. Described in docs/carriers.md;
specification: LCDD ("a sparse carrier").
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from midblock.base import MidblockError
from midblock.base.files import write_failure
from midblock.checkpoints.carrier_config import CONFIG, CarrierConfig
from midblock.checkpoints.carrier_file import VALUES, WEIGHTS, Masks, read_file, write_file
from midblock.checkpoints.decoder_names import name_in
from midblock.checkpoints.entries import Entries


@dataclass(frozen=True)
class Carrier:
    """Entries of some parameters, and the masks that chose them.

    Attributes:
        config: its base, where it is from, how it was made.
        held: the entries of each parameter that has some, by its name in memory.
        masks: which channels are kept, by layer (as in tables: -1 embedding, block, L head) and group.
        folder: where it lies; None in memory.
    """

    config: CarrierConfig
    held: Mapping[str, Entries] = field(repr=False)
    masks: Masks = field(default_factory=dict, repr=False)
    folder: Path | None = None

    @classmethod
    def open(cls, folder: Path | str) -> Carrier:
        """Open a carrier's folder, checked throughout; values are read when they are asked for.

        Raises:
            MidblockError: a file is missing or damaged, of an unknown format, or holds indices out of range, not
                ascending or repeated, values that are not finite, or something that its config does not name.

        Example:
            >>> Carrier.open("carved/carrier").names[:1]
            ('model.layers.0.mlp.down_proj.weight',)
        """
        folder = Path(folder)
        config = CarrierConfig.read(folder / CONFIG)
        held, masks = read_file(folder / WEIGHTS, config.shapes)
        return cls(config, held, masks, folder)

    @property
    def name(self) -> str:
        """What messages call it."""
        return "the carrier in memory" if self.folder is None else f"the carrier {self.folder}"

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that it changes."""
        return tuple(self.held)

    @property
    def count(self) -> int:
        """How many entries it holds."""
        return sum(self.entries(name).count for name in self.held)

    @property
    def nbytes(self) -> int:
        """Bytes of values and indices, as on disk; masks and headers not counted."""
        return sum(self.entries(name).nbytes for name in self.held)

    def entries(self, name: str) -> Entries:
        """The entries of a parameter."""
        return self.held[name]

    def named_as(self, parts: Mapping[str, str]) -> Carrier:
        """The same for a model in which the decoder's parts stand elsewhere (`Anatomy.names`)."""
        own = self.config.parts
        if not own or dict(parts) == dict(own):
            return self
        names = {name: name_in(parts, own, name) for name in self.held}
        shapes = {names[name]: self.config.shapes[name] for name in self.held}
        config = replace(self.config, shapes=shapes, parts=dict(parts))
        return replace(self, config=config, held={new: self.entries(name) for name, new in names.items()})

    def content_hash(self) -> str:
        """SHA-256 of its entries: names, shapes, indices and values."""
        digest = hashlib.sha256()
        for name in sorted(self.held):
            entries = self.entries(name)
            digest.update(f"{name} {entries.values.dtype} {self.config.shapes[name]}\n".encode())
            for part in (*entries.indices, entries.values):
                digest.update(b"all" if part is None else part.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def check_on(self, shapes: Mapping[str, tuple[int, ...]], model: str) -> None:
        """Do nothing if a model has every parameter that is changed, in the shape it was carved from.

        Args:
            shapes: of the model's parameters.
            model: what to call it.

        Raises:
            MidblockError: naming the first that it has not, or has in another shape.
        """
        for name in self.held:
            wanted = self.config.shapes[name]
            if name not in shapes:
                hint = "another architecture, or a head that is tied to the embedding there"
                raise MidblockError(f"{self.name} changes {name}, which {model} has not", hint=hint)
            if tuple(shapes[name]) != wanted:
                what = f"{self.name} changes {name} in the shape {list(wanted)}, {model} has {list(shapes[name])}"
                raise MidblockError(what, hint="it was carved from another base")


def write_carrier(folder: Path | str, entries: Mapping[str, Entries], masks: Masks, config: CarrierConfig) -> Carrier:
    """Write a carrier's folder; the config comes last, since a folder without it is no carrier.

    Args:
        entries: of each parameter, by its name in memory; those without an entry are left out.
        masks: which channels are kept, by layer and group.
        config: its `shapes` tell those of all parameters in `entries`; more may be there.

    Returns:
        The carrier, opened.

    Raises:
        MidblockError: there is no entry at all, a name that the file's own would be taken for, or the place cannot be
            written.

    Example:
        >>> write_carrier("carved/carrier", carrier.held, carrier.masks, carrier.config).count
        1536
    """
    folder = Path(folder)
    kept = {name: each for name, each in entries.items() if each.count}
    if not kept:
        raise MidblockError("the carrier holds no entry: all masks are off, it is its base", hint="nothing is written")
    taken = {name + VALUES for name in kept} | {f"{name}.{dim}" for name in kept for dim in range(8)}
    if clash := next((name for name in kept if name.startswith("mask.") or name in taken), None):
        raise MidblockError(f"a carrier's file cannot hold a parameter called {clash}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).unlink(missing_ok=True)
    except OSError as error:
        raise write_failure(folder, error) from error
    write_file(folder / WEIGHTS, kept, masks)
    replace(config, shapes={name: config.shapes[name] for name in kept}).write(folder / CONFIG)
    return Carrier.open(folder)
