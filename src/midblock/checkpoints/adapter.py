"""Adapter: a PEFT LoRA folder read as low-rank changes of its base's tensors; no model is built, nothing is merged.

Read are LoRA on linear layers and embeddings, on stacked experts (`target_parameters`), DoRA's magnitudes, and tensors
replaced as a whole. Cost: the adapter's file. Source: PEFT's file format, and its layers for how factors are laid out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from midblock.base import MidblockError, user_path
from midblock.base.plain_file import check_plain_folder
from midblock.checkpoints.adapter_names import PREFIX, AdapterNames, AdapterTensors
from midblock.checkpoints.factors import read_factors
from midblock.checkpoints.lora_config import LoraSettings
from midblock.checkpoints.low_rank import Delta, LowRankDelta, StackedDelta
from midblock.checkpoints.projections import Projection
from midblock.checkpoints.reference import ModelReference
from midblock.checkpoints.tensors import TensorReader

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
FACTORS = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")
MAGNITUDES = (".lora_magnitude_vector", ".lora_magnitude_vector.weight")
MERGE_FIRST = "merge that one first (midblock export --to merged), and give the merged folder with --base"
LAYER = ".base_layer"  # what PEFT puts into the name of a module that it wraps


@runtime_checkable
class Tensors(Protocol):
    """What an adapter must know of its base: names and shapes."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def __contains__(self, name: object) -> bool: ...


@dataclass(frozen=True)
class Adapter:
    """An adapter folder.

    Attributes:
        folder: holds adapter_config.json and adapter_model.safetensors.
        base: the model it changes.
        settings: ranks, scales and what else decides the change.
    """

    folder: Path
    base: ModelReference
    settings: LoraSettings

    @classmethod
    def open(cls, folder: Path | str, base: str | None = None) -> Adapter:
        """Read an adapter's settings and find its base; the weights wait.

        Args:
            base: a model reference to use instead of the one the adapter names.

        Raises:
            MidblockError: the config is missing or broken, the weights are missing or pickled, the base is not to be
                found or is an adapter itself.
        """
        folder = Path(folder)
        settings = settings_of(folder)
        return cls(folder, _find_base(folder, settings, base), settings)

    def tensors(self) -> TensorReader:
        """The adapter's own tensors, under the names in its file."""
        return TensorReader.open(self.folder / WEIGHTS)

    def tensors_on(self, base: Tensors) -> AdapterTensors:
        """The adapter's own tensors, under the names that PEFT gives them on a base.

        Raises:
            MidblockError: two of them mean the same.
        """
        own = self.tensors()
        return AdapterTensors(own, AdapterNames.of(own.names, base.names, self.folder))

    def check_expressible(self) -> None:
        """Do nothing if the adapter is low-rank changes, with or without magnitudes, plus whole replaced tensors.

        Raises:
            MidblockError: naming what makes it something else (IA3, an init that alters the base, …).
        """
        if reason := self.settings.inexpressible:
            hint = "midblock export --to merged, and give the merged folder"
            raise MidblockError(f"{self.folder}: {reason} is no low-rank change of the weights", hint=hint)

    def deltas(self, base: Tensors, projections: Mapping[str, Projection] | None = None) -> Iterator[tuple[str, Delta]]:
        """Give each changed tensor's name in the base, and its change, scaled as PEFT scales it.

        Args:
            base: the base's tensors; their names and shapes decide the prefix and, for Conv1D, the orientation.
            projections: the base's parameters, where they are known: they tell the orientation of square weights, and
                which of a module's parameters a stacked change is about.

        Raises:
            MidblockError: as `check_expressible`; a factor without its partner; a rank that is not the config's; a
                tensor that the base has not, or has in another shape.
        """
        self.check_expressible()
        known = projections or {}
        with self.tensors_on(base) as own:
            pairs = list(_factor_pairs(own, self.folder))
            written = own.within.written
            self.settings.check_patterns((*base.names, *written.values()), self.folder)
            for module, left, right in pairs:
                B, A = read_factors(own, left, right, self.folder / WEIGHTS)
                if name := self._parameter(module, left, base):
                    own_name = written.get(module, module) + name.removeprefix(module)
                    yield name, self._stacked(name, own_name, B, A, base, known)
                    continue
                scale = self.settings.scale(module, B.shape[1], written.get(module, module))
                name = _base_name(f"{module}.weight", base, self.folder)
                turned = known[name].transposed if name in known else self.settings.fan_in_fan_out
                if "lora_embedding" in left:
                    B, A, turned = A.T, B.T, False
                yield name, _oriented(LowRankDelta(B, A, scale), name, base, self.folder, turned)

    def magnitudes(self, base: Tensors) -> Iterator[tuple[str, Float[Tensor, " m"]]]:
        """Give DoRA's magnitude of each output, by the name of the weight in the base; none without DoRA."""
        if not self.settings.use_dora:
            return
        with self.tensors_on(base) as own:
            for name in own.names:
                if name.endswith(MAGNITUDES):
                    module = _plain(name).rpartition(".lora_magnitude_vector")[0].replace(LAYER, "")
                    yield _base_name(f"{module}.weight", base, self.folder), own.read(name)

    def replaced(self, base: Tensors) -> Iterator[tuple[str, Float[Tensor, "*shape"]]]:
        """Give each tensor that the adapter replaces as a whole (modules_to_save, trained biases, resized embeddings).

        A name may come here and in `deltas` too: the delta is then on top of the replacement. `lm_head.weight` may come
        though the base, with tied embeddings, has no such tensor.

        Raises:
            MidblockError: as `check_expressible`; a tensor that the base has not.
        """
        self.check_expressible()
        with self.tensors_on(base) as own:
            for name in own.names:
                if not name.endswith((*FACTORS, *MAGNITUDES)):
                    yield self._replaced_name(name, base), own.read(name)

    def _replaced_name(self, name: str, base: Tensors) -> str:
        if "lora_" in name or "trainable_tokens" in name:
            raise MidblockError(f"{self.folder}: the tensor {name} is neither a LoRA factor nor a whole weight")
        return _base_name(_plain(name).replace(f"{LAYER}.", "."), base, self.folder)

    def _parameter(self, module: str, factor: str, base: Tensors) -> str | None:
        """The parameter of `module` that a factor is about, where parameters themselves are adapted.

        PEFT wraps a module once for each of its parameters, in the module's order: the first is innermost.
        """
        ends = self.settings.target_parameters
        asked = [
            name
            for name in (base.names if ends else ())
            if name.rpartition(".")[0] == module and any(name == end or name.endswith(f".{end}") for end in ends)
        ]
        position = len(asked) - 1 - factor.count(LAYER)
        return asked[position] if asked and position >= 0 else None

    def _stacked(
        self,
        name: str,
        written: str,
        B: Float[Tensor, "m re"],
        A: Float[Tensor, "er n"],
        base: Tensors,
        known: Mapping[str, Projection],
    ) -> Delta:
        shape = base.shape(name)
        experts = shape[0] if len(shape) == 3 else 1
        scale = self.settings.scale(name, B.shape[1] // experts, written)
        if len(shape) == 2:
            return _oriented(LowRankDelta(B, A, scale), name, base, self.folder, turn_square=False)
        turned = name in known and known[name].transposed
        delta = StackedDelta.of(B, A, scale, experts, turned=turned)
        if delta.shape != shape:
            raise _misfit(self.folder, name, delta.shape, shape)
        return delta


def settings_of(folder: Path) -> LoraSettings:
    """Read the settings of an adapter whose weights can be read too.

    Raises:
        MidblockError: the config is missing or broken, the adapter is no change of weights, or its weights are missing,
            pickled, or empty.
    """
    check_plain_folder(folder)
    settings = LoraSettings.read(folder / CONFIG)
    if settings.unmergeable:
        why, hint = settings.unmergeable
        raise MidblockError(f"the adapter {folder} cannot be merged into its base's weights: {why}", hint=hint)
    if (folder / WEIGHTS).exists():
        _check_filled(folder / WEIGHTS)
        return settings
    if (folder / PICKLED).exists():
        hint = "a pickle can run code; load it with PEFT and save it again as safetensors"
        raise MidblockError(f"{folder / PICKLED} holds pickled weights, which are not read", hint=hint)
    raise MidblockError(f"{folder} has no {WEIGHTS}", hint="fetch the adapter again")


def _check_filled(file: Path) -> None:
    """Sharded training that does not gather its parameters before it saves leaves nothing of them."""
    hint = "gather the parameters before saving (ZeRO-3: stage3_gather_16bit_weights_on_model_save), or save it again"
    with TensorReader.open(file) as own:
        if not own.names:
            raise MidblockError(f"{file} holds no tensors", hint=hint)
        if empty := [name for name in own.names if 0 in own.shape(name)]:
            what = f"{file}: the tensor {empty[0]} has no entries ({len(empty)} of {len(own)} tensors have none)"
            raise MidblockError(what, hint=hint)


def _plain(name: str) -> str:
    return name.removeprefix(PREFIX)


def _factor_pairs(own: AdapterTensors, folder: Path) -> Iterator[tuple[str, str, str]]:
    """Module name in the base, name of B, name of A, for every adapted module."""
    for name in own.names:
        if not name.endswith(FACTORS):
            continue
        partner = name.replace(".lora_A.", ".lora_B.") if ".lora_A." in name else name.replace(".lora_B.", ".lora_A.")
        if "lora_embedding" in name:
            a, b = "lora_embedding_A", "lora_embedding_B"
            partner = name.replace(a, b) if name.endswith(a) else name.replace(b, a)
        if partner not in own:
            raise MidblockError(f"{folder / WEIGHTS} has {name} without {partner}")
        if "_B" in name:
            yield _plain(name).rpartition(".lora_")[0].replace(LAYER, ""), name, partner


def _base_name(name: str, base: Tensors, folder: Path) -> str:
    """See that the base has a tensor; a tied head is not in its file, the embedding stands for it.

    Raises:
        MidblockError: it has not.
    """
    if name in base or name == "lm_head.weight":
        return name
    hint = "another base was tuned, or the tensor is stored in another form there; --base names the right one"
    raise MidblockError(f"the adapter {folder} changes {name}, which its base has not", hint=hint)


def _misfit(folder: Path, name: str, ours: tuple[int, ...], theirs: tuple[int, ...]) -> MidblockError:
    what = f"the adapter {folder} changes {name} in the shape {list(ours)}, its base has {list(theirs)}"
    return MidblockError(what, hint="another base was tuned; --base names the right one")


def _oriented(delta: LowRankDelta, name: str, base: Tensors, folder: Path, turn_square: bool) -> LowRankDelta:
    """Turn the delta if the base stores the weight in × out, as GPT-2's Conv1D does.

    The shapes decide; the config's fan_in_fan_out only where the weight is square, since PEFT sets it by module.
    """
    if name not in base:
        return delta
    shape, turned = base.shape(name), delta.turned
    if shape not in (delta.shape, turned.shape):
        raise _misfit(folder, name, delta.shape, shape)
    if delta.shape == turned.shape:
        return turned if turn_square else delta
    return delta if shape == delta.shape else turned


def _find_base(folder: Path, settings: LoraSettings, given: str | None) -> ModelReference:
    named = given or settings.base
    if not named:
        raise MidblockError(f"the adapter {folder} does not say what its base is", hint="give it with --base")
    beside = folder / user_path(named)
    try:
        if not given and not user_path(named).exists() and beside.exists():
            return _no_adapter(ModelReference.parse(str(beside)), folder)
        base = ModelReference.parse(named)
    except MidblockError as error:
        what = f"the base of the adapter {folder} was not found: {error.what}"
        raise MidblockError(what, hint="give it with --base (a folder, a hub name, builtin:…)") from error
    if base.kind == "hub" and base.revision is None and settings.revision and not given:
        base = ModelReference(f"{base.text}@{settings.revision}", "hub", base.location, settings.revision)
    return _no_adapter(base, folder)


def _no_adapter(base: ModelReference, folder: Path) -> ModelReference:
    if base.kind == "adapter":
        raise MidblockError(f"the base of the adapter {folder} is an adapter itself: {base}", hint=MERGE_FIRST)
    return base
