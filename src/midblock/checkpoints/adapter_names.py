"""The names in an adapter's file, read as those that its base's modules have under PEFT.

PEFT finds a tensor by its name alone and passes over what it does not know, without a word. Compilers, sharding and
trainers put words into names (`_orig_mod.`, `module.`), and the model that was tuned may have been loaded by another
class (`model.` less, `language_model.` more). Such words are stripped on both sides, and what then stands in the base
just once is that. Cost: names only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import dropwhile
from pathlib import Path
from types import TracebackType

from jaxtyping import Shaped
from torch import Tensor

from midblock.base import MidblockError
from midblock.checkpoints.tensors import TensorReader

PREFIX = "base_model.model."
ADAPTER = "default"  # what PEFT calls an adapter in memory; it is not in a file's names

# what is put anywhere into names by torch.compile, FSDP, activation checkpointing and data parallelism
WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"})
# what stands in front of the parts of a decoder, depending on the class that holds it
HOLDERS = frozenset({"base_model", "model", "language_model", "text_model", "transformer", "decoder", "llm"})


def unwrapped(name: str) -> str:
    """A name without what wrappers put into it, where no base is at hand to tell what else is too much."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS | {ADAPTER})


@dataclass(frozen=True)
class AdapterNames:
    """Where each tensor of an adapter belongs.

    Attributes:
        stored: its name under PEFT, to that in the file.
        modules: its name under PEFT, to the base's module it is about; what is about none is not here.
        written: the base's module, to what the model that was tuned called it; its config's patterns are about that.
    """

    stored: Mapping[str, str]
    modules: Mapping[str, str]
    written: Mapping[str, str]

    @classmethod
    def of(cls, names: Iterable[str], base: Iterable[str], folder: Path) -> AdapterNames:
        """Read an adapter's names.

        Args:
            names: in its file.
            base: of the base's parameters.
            folder: the adapter's, for messages.

        Raises:
            MidblockError: two names mean the same tensor.
        """
        known = _Modules.of(base)
        stored: dict[str, str] = {}
        modules: dict[str, str] = {}
        written: dict[str, str] = {}
        for name in names:
            full, module, own = known.find(name)
            if full in stored:
                what = f"the adapter {folder} holds a tensor twice: {stored[full]} and {name} are both {full}"
                raise MidblockError(what, hint="save it again from the unwrapped model")
            stored[full] = name
            if module is not None:
                modules[full], written[module] = module, own
        return cls(stored, modules, written)

    @property
    def renamed(self) -> dict[str, str]:
        """The part of `stored` in which the two differ."""
        return {full: name for full, name in self.stored.items() if full != name}


@dataclass(frozen=True)
class AdapterTensors:
    """An adapter's tensors under the names that PEFT gives them, whatever its file calls them."""

    reader: TensorReader
    within: AdapterNames

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.within.stored)

    def read(self, name: str) -> Shaped[Tensor, "*shape"]:
        """A view of the mapped file, as `TensorReader.read`."""
        return self.reader.read(self.within.stored[name])

    def __contains__(self, name: object) -> bool:
        return name in self.within.stored

    def __enter__(self) -> AdapterTensors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reader.close()


@dataclass(frozen=True)
class _Modules:
    """The base's modules that hold parameters, by their names and by what is left of those without wrappers."""

    full: frozenset[str]
    words: frozenset[str]

    @classmethod
    def of(cls, parameters: Iterable[str]) -> _Modules:
        full = frozenset(name.rpartition(".")[0] for name in parameters)
        return cls(full, frozenset(word for name in full for word in name.split(".")))

    @cached_property
    def short(self) -> Mapping[str, str]:
        """Short names that mean one module only."""
        found: dict[str, list[str]] = {}
        for name in self.full:
            found.setdefault(".".join(_front_off(name.split("."))), []).append(name)
        return {short: names[0] for short, names in found.items() if len(names) == 1}

    def find(self, stored: str) -> tuple[str, str | None, str]:
        """A tensor's name under PEFT, the module it is about, and what the file calls that.

        Of one that is about none, its name as it is, None and "".
        """
        parts = [part for part in stored.split(".") if part not in WRAPPERS - self.words]
        plain = ".".join(parts)
        exact = plain.removeprefix(PREFIX).split(".")
        if (length := _longest(exact, self.full)) is not None:
            module, rest = ".".join(exact[:length]), exact[length:]
        else:
            front_off = _front_off(parts)
            length = _longest(front_off, self.short)
            if length is None:
                return plain, None, ""
            module, rest = self.short[".".join(front_off[:length])], front_off[length:]
        full = ".".join([PREFIX + module, *(part for part in rest if part != ADAPTER)])
        return full, module, ".".join(exact[: len(exact) - len(rest)])


def _front_off(parts: Sequence[str]) -> list[str]:
    return list(dropwhile(lambda part: part in HOLDERS, parts))


def _longest(parts: Sequence[str], names: Mapping[str, str] | frozenset[str]) -> int | None:
    """How many leading parts make the longest name there is."""
    return next((end for end in range(len(parts) - 1, 0, -1) if ".".join(parts[:end]) in names), None)
