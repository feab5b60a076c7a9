"""BlockwiseModel: a model of which only the parts in use have their weights, read from its files and let go again.

Its modules are those that transformers builds, its parameters lie on the meta device, its buffers are real. A part (the
embedding, a block, the head, …) is filled for as long as a `with` lasts, in the type and on the device that
`load_model` would give it; the next part is read meanwhile by a thread. Cost: a copy of the part, and one of the part
that is read ahead. Values are those of `EffectiveTensors`: an adapter's change is added in float64 and rounded once,
where PEFT merges it in the weights' own type, so that a merged weight may differ in its last bit.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from midblock.base import MidblockError
from midblock.checkpoints.anatomy import Anatomy
from midblock.checkpoints.checkpoint import Checkpoint
from midblock.checkpoints.config import STRANGE, reason_of
from midblock.checkpoints.effective import EffectiveTensors
from midblock.checkpoints.footprint import dtype_in_memory
from midblock.checkpoints.models import check_files, pick_device
from midblock.checkpoints.readable import check_readable
from midblock.checkpoints.roles import other_modality
from midblock.checkpoints.settings import LoadSettings
from midblock.checkpoints.skeleton import auto_class

# a block by its number; "around" is all that is none of the others, as tables of positions
Part = int | Literal["embedding", "around", "final_norm", "head"]
Places = tuple[tuple[nn.Module, str], ...]  # modules that hold a parameter, and what they call it

HINT = "without --max-memory it is loaded whole"


@dataclass(frozen=True, eq=False)
class BlockwiseModel:
    """A checkpoint as a model whose weights come and go by parts.

    Attributes:
        model: the causal language model; a parameter that is not loaded lies on the meta device.
        anatomy: its parts.
        tensors: its weights, by their names in memory.
        device: where parts are put.
        kinds: the type of each parameter.
    """

    name: str
    model: nn.Module
    anatomy: Anatomy
    tensors: EffectiveTensors
    device: torch.device
    kinds: Mapping[str, torch.dtype]
    _empty: dict[str, nn.Parameter] = field(default_factory=dict)  # each parameter as it stands when it is not loaded
    _ahead: dict[Part, Future[dict[str, Tensor]]] = field(default_factory=dict)
    _reader: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "reading weights"))

    @classmethod
    def of(cls, checkpoint: Checkpoint, settings: LoadSettings, name: str) -> BlockwiseModel:
        """Open a checkpoint; no weight is read but buffers that are kept in files.

        Raises:
            MidblockError: it is no causal language model, its files do not hold what its config asks for, or they do
                in a form that cannot be read part by part.
        """
        _check_expressible(checkpoint, name)
        device = pick_device(settings.device)
        check_files(checkpoint)
        tensors = check_readable(EffectiveTensors.of_checkpoint(checkpoint, name))
        kind = dtype_in_memory(checkpoint, settings)
        model = _built(checkpoint, settings, kind)
        plan = {re.compile(key.replace("*", ".*")): each for key, each in model._get_dtype_plan(kind).items()}
        kinds = {each: _kind_of(each, value, plan) for each, value in model.named_parameters(remove_duplicate=False)}
        found = cls(name, model, Anatomy.of(model), tensors, device, kinds)
        found._make_empty()
        found._check_whole()
        found._fill_buffers(plan)
        return found

    @contextmanager
    def loaded(self, *parts: Part, then: Part | None = None) -> Iterator[None]:
        """Give parts their weights inside the `with`; those that have them already keep them.

        Args:
            then: read meanwhile, for the next `loaded`.
        """
        filled: list[str] = []
        try:
            for part in parts:
                values = self._taken(part)
                filled += values
                for name in list(values):
                    self._put(name, nn.Parameter(values.pop(name).to(self.device), requires_grad=False))
            if then is not None and then not in self._ahead:
                self._ahead[then] = self._reader.submit(self._read, self._lacking(then))
            yield
        finally:
            for name in filled:
                self._put(name, self._empty[name])

    def bytes_of(self, part: Part) -> int:
        """What a part takes in memory."""
        return sum(self.numbers_of(name) * self.kinds[name].itemsize for name in self.names_of(part))

    def numbers_of(self, name: str) -> int:
        """How many numbers a parameter holds."""
        return self._empty[name].numel()

    def names_of(self, part: Part) -> tuple[str, ...]:
        """The parameters that a part needs; a tied head the embedding's too."""
        return self._parts[part]

    @contextmanager
    def stood_in(self, part: Part) -> Iterator[None]:
        """Inside the `with`, a part's weights stand where it computes and have their shape, but no numbers."""
        lacking = self._lacking(part)
        for name in lacking:
            empty = torch.zeros((), dtype=self.kinds[name], device=self.device).expand(self._empty[name].shape)
            self._put(name, nn.Parameter(empty, requires_grad=False))
        try:
            yield
        finally:
            for name in lacking:
                self._put(name, self._empty[name])

    def copy_of(self, module: nn.Module) -> nn.Module:
        """A small module once more, with weights that stay when the part that it is in is let go of."""
        copied = copy.deepcopy(module)
        names = {(id(each), key): name for name, places in self._places.items() for each, key in places}
        for own, other in zip(module.modules(), copied.modules(), strict=True):
            for key in [key for key, value in own._parameters.items() if value is not None]:
                name = names[id(own), key]
                value = self._reader.submit(self._read, (name,)).result()[name]
                other._parameters[key] = nn.Parameter(value.to(self.device), requires_grad=False)
        return copied

    def close(self) -> None:
        """Let go of the files."""
        self._reader.shutdown(cancel_futures=True)
        self._ahead.clear()
        self.tensors.close()

    def _taken(self, part: Part) -> dict[str, Tensor]:
        """A part's weights that are not there yet, read ahead or now, by the one thread that reads these files."""
        ahead = self._ahead.pop(part, None)
        if ahead is None:
            ahead = self._reader.submit(self._read, self._lacking(part))
        lacking = self._lacking(part)
        return {name: value for name, value in ahead.result().items() if name in lacking}

    def _lacking(self, part: Part) -> tuple[str, ...]:
        return tuple(name for name in self.names_of(part) if self._held(name).is_meta)

    def _read(self, names: Sequence[str]) -> dict[str, Tensor]:
        return {name: self._value(name, self.kinds[name]) for name in names}

    def _value(self, name: str, kind: torch.dtype) -> Tensor:
        """A copy of a tensor; the pages it was read from go back to the system."""
        stored = self.tensors.read(name)
        value = torch.empty(stored.shape, dtype=kind if stored.is_floating_point() else stored.dtype).copy_(stored)
        del stored
        for piece in self.tensors.pieces(name):
            self.tensors.release(piece)
        return value

    def _held(self, name: str) -> Tensor:
        module, key = self._places[name][0]
        return module._parameters[key]  # type: ignore[return-value]

    def _put(self, name: str, value: nn.Parameter) -> None:
        for module, key in self._places[name]:
            module._parameters[key] = value

    @cached_property
    def _places(self) -> Mapping[str, Places]:
        """Of each parameter, by one name, the modules that hold it; a head that an adapter untied stands alone."""
        found: dict[int, str] = {}
        places: dict[str, Places] = {}
        modules = dict(self.model.named_modules())
        for name, value in self.model.named_parameters(remove_duplicate=False):
            path, _, key = name.rpartition(".")
            own = name == self.tensors.head and not self.tensors.tied
            first = name if own else found.setdefault(id(value), name)
            places[first] = (*places.get(first, ()), (modules[path], key))
        return {self._stored_name(name, each): each for name, each in places.items()}

    def _stored_name(self, name: str, places: Places) -> str:
        """Of the names of one parameter, that which files have."""
        if name in self.tensors.by_name or len(places) == 1:
            return name
        paths = {id(module): path for path, module in self.model.named_modules()}
        names = (f"{paths[id(module)]}.{key}" for module, key in places)
        return next((each for each in names if each in self.tensors.by_name), name)

    @cached_property
    def _parts(self) -> Mapping[Part, tuple[str, ...]]:
        by_module: dict[int, list[str]] = {}
        for name, places in self._places.items():
            for module, _ in places:
                by_module.setdefault(id(module), []).append(name)

        def inside(module: nn.Module) -> tuple[str, ...]:
            names = [name for each in module.modules() for name in by_module.get(id(each), [])]
            return tuple(dict.fromkeys(names))

        found: dict[Part, tuple[str, ...]] = {number: inside(each) for number, each in enumerate(self.anatomy.blocks)}
        found |= {"final_norm": inside(self.anatomy.final_norm), "head": inside(self.anatomy.head)}
        found["embedding"] = inside(self.anatomy.embedding)
        elsewhere = {name for names in found.values() for name in names}
        found["around"] = tuple(
            name for name in self._places if name not in elsewhere and not other_modality(name.rpartition(".")[0])
        )
        return found

    def _make_empty(self) -> None:
        """Put every parameter on the meta device: some are drawn elsewhere, whatever device is asked for."""
        for name in self._places:
            self._empty[name] = nn.Parameter(self._held(name).detach().to("meta"), requires_grad=False)
            self._put(name, self._empty[name])

    def _check_whole(self) -> None:
        """Raise MidblockError unless the files give every weight that the decoder needs."""
        there = {*self.tensors.names, *([self.tensors.head] if self.tensors.has_head else [])}
        lacking = [name for names in self._parts.values() for name in names if name not in there]
        if not lacking:
            return
        if strange := next((piece for piece in self.tensors.stored_pieces if piece.opaque), None):
            what = f"{self.name}: {strange.stored} lies on disk in a form ({strange.opaque}) that is not read by parts"
            raise MidblockError(what, hint=HINT)
        raise MidblockError(f"{self.name} lacks the tensor {lacking[0]} ({len(lacking)} missing in all)")

    def _fill_buffers(self, plan: Mapping[re.Pattern[str], torch.dtype]) -> None:
        """Make the buffers real: those of files as they lie there, others as transformers makes them when it loads."""
        model: Any = self.model
        for name, buffer in list(model.named_buffers()):
            module, key = _at(model, name)
            value = torch.empty_like(buffer, device="cpu")
            if name in self.tensors.by_name and key not in module._non_persistent_buffers_set:
                value = self._value(name, _kind_of(name, buffer, plan))
                value._is_hf_initialized = True  # type: ignore[attr-defined]
            module._buffers[key] = value
        for parameter in model.parameters():
            parameter._is_hf_initialized = True
        model.initialize_weights()
        for name, buffer in list(model.named_buffers()):
            module, key = _at(model, name)
            module._buffers[key] = buffer.to(self.device)


def _check_expressible(checkpoint: Checkpoint, name: str) -> None:
    adapter = checkpoint.adapter
    if adapter is not None and adapter.settings.inexpressible:
        what = f"{name}: its adapter ({adapter.settings.inexpressible}) is merged by PEFT alone, which takes all of it"
        raise MidblockError(what, hint="midblock export ADAPTER --to merged writes it as a checkpoint")
    if checkpoint.prompt is not None:
        raise MidblockError(f"{name}: a soft prompt is not read by parts", hint=HINT)


def _built(checkpoint: Checkpoint, settings: LoadSettings, kind: torch.dtype) -> Any:
    """The model on the meta device, as transformers builds it before it loads."""
    asked = {"attn_implementation": settings.attn_implementation} if settings.attn_implementation else {}
    config = copy.deepcopy(checkpoint.config)
    try:
        with torch.device("meta"):
            made = auto_class(config).from_config(
                config, trust_remote_code=checkpoint.trust_remote_code, dtype=kind, **asked
            )
    except STRANGE as error:
        raise MidblockError(f"cannot build {checkpoint.name}: {reason_of(error)}") from error
    return made.eval().requires_grad_(False)


def _kind_of(name: str, value: Tensor, plan: Mapping[re.Pattern[str], torch.dtype]) -> torch.dtype:
    """The type that transformers loads a tensor in."""
    if not value.is_floating_point():
        return value.dtype
    return next((kind for pattern, kind in plan.items() if pattern.search(name)), value.dtype)


def _at(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, key = name.rpartition(".")
    return model.get_submodule(path), key
