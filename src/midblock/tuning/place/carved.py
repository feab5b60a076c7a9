"""The method `carve`: masks over the change from a base to a tuned model, written as a carrier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, Checkpoint, LoadSettings, load_model, open_checkpoint
from midblock.checkpoints.carrier import write_carrier
from midblock.checkpoints.carrier_config import CarrierConfig
from midblock.checkpoints.effective import EffectiveTensors
from midblock.checkpoints.entries import Entries
from midblock.runs.request import check_takes
from midblock.tuning.anchor.anchor import Anchor
from midblock.tuning.anchor.factors import Factors
from midblock.tuning.carve.best import read_masks
from midblock.tuning.carve.carver import Carver
from midblock.tuning.carve.channels import ChannelGroups
from midblock.tuning.carve.dual import DualControl
from midblock.tuning.carve.masks import Masks
from midblock.tuning.carve.selected import SelectedWeight
from midblock.tuning.carve.verdict import check_some, verdict
from midblock.tuning.place.own_weights import OwnWeights
from midblock.tuning.place.trainable import Start, Trainable
from midblock.tuning.place.weights import parameter_parts, train_only
from midblock.tuning.settings import Anchoring, Carving, CourseSettings

TUNED = "tuned"
PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class CarvedWeights(Trainable):
    """A model between a base and one tuned from it.

    Attributes:
        own: its parameters that differ.
        carver: masks and the dual variable.
        tuned: the checkpoint whose change it is.
    """

    own: OwnWeights
    carver: Carver
    tuned: Checkpoint

    @property
    def model(self) -> nn.Module:
        return self.own.model

    @property
    def by_part(self) -> dict[str, int]:
        return self.own.by_part

    def targets(self) -> list[dict[str, Any]]:
        return self.own.targets()

    def check_anchor(self, settings: CourseSettings) -> None:
        raise MidblockError("carving holds the loss in a budget and knows no anchor", hint="--anchor none")

    def anchored(self) -> dict[str, nn.Parameter]:
        return {}

    def anchor(self, factors: Mapping[str, Factors], settings: Anchoring) -> Anchor:
        raise ValueError("nothing is anchored")

    @property
    def bytes_beside(self) -> int:
        return sum(weight.rest.nbytes for weight in self.carver.weights.values())

    def companion(self, steps: int, device: torch.device, scratch: Path) -> Carver:
        return self.carver.begin(steps, device, scratch)

    @property
    def saved(self) -> set[str]:
        """Nothing: the carver knows what the carrier consists of."""
        return set()

    def write(self, folder: Path, state: Mapping[str, Tensor], base: Checkpoint) -> None:
        carver = self.carver
        file, found = carver.final()
        on = read_masks(file, carver.groups)
        check_some(on)
        config = CarrierConfig(
            base=base.reference.text,
            base_hash=base.weight_hash(),
            architecture=str(base.config.model_type),
            tuned=self.tuned.reference.text,
            tuned_hash=self.tuned.weight_hash(),
            shapes={name: tuple(weight.parameter.shape) for name, weight in carver.weights.items()},
            made={"method": "lcdd", **asdict(_plain(carver.settings)), **verdict(carver, found, on)},
            parts=dict(self.own.anatomy.names),
        )
        entries = _EntriesKept(file, carver, on, _types(base, self.tuned))
        write_carrier(folder, {name: entries.of(name) for name in carver.weights}, carver.groups.by_group(on), config)


@dataclass(frozen=True, eq=False)
class _EntriesKept:
    """The entries of a carrier as `write_state` wrote them.

    Attributes:
        kinds: the type that each parameter is written in; where it is not said, that of training.
    """

    file: Path
    carver: Carver
    on: Mapping[int, Tensor]
    kinds: Mapping[str, torch.dtype]

    def of(self, name: str) -> Entries:
        weight = self.carver.weights[name]
        kept = self.carver.groups.channels[name].kept(self.on[weight.layer])
        indices = tuple(
            None if each is None or len(each) == side else each
            for each, side in zip(kept, weight.parameter.shape, strict=True)
        )
        with safe_open(self.file, framework="pt") as opened:
            values: Tensor = opened.get_tensor(name)
        return Entries(indices, values.to(self.kinds.get(name, values.dtype)))


def open_tuned(settings: CourseSettings, loading: LoadSettings) -> dict[str, Checkpoint]:
    """The tuned model.

    Raises:
        MidblockError: none is named, or it leads nowhere.
    """
    reference = _plain(settings).tuned
    if not reference:
        raise MidblockError("there is no tuned model whose change could be carved", hint="midblock carve BASE TUNED")
    opened = open_checkpoint(reference, allow_pickle=loading.allow_pickle, trust_remote_code=loading.trust_remote_code)
    check_takes("carve", opened)
    return {TUNED: opened}


def carve_out(start: Start) -> Trainable:
    """Make the parameters in which the tuned model differs trainable, masks over them, and freeze all others.

    Raises:
        MidblockError: the tuned model has other parameters or shapes than the base, or the same weights.
    """
    causal, settings = start.causal, _plain(start.settings)
    checkpoint = start.others[TUNED]
    tuned = load_model(checkpoint, replace(start.loading, device="cpu"), whole=True)
    groups, weights = between(causal, tuned, checkpoint.name)
    parts = parameter_parts(causal)
    chosen = {name: parts[name] for name in weights}
    train_only(causal, chosen)
    masks = Masks.drawn(groups, start.settings.seed)
    carver = Carver(settings, groups, weights, masks, DualControl.of(settings))
    return CarvedWeights(OwnWeights(causal, chosen, Anatomy.of(causal)), carver, checkpoint)


def between(base: nn.Module, tuned: nn.Module, name: str) -> tuple[ChannelGroups, dict[str, SelectedWeight]]:
    """Put a tuned model's values where they differ into the base, whose own are kept beside them.

    Args:
        base: changed in place; it shares its tensors with the tuned model afterwards.
        name: of the tuned model, for messages.

    Returns:
        The channel groups of the parameters that differ, and those parameters, all masks being on.

    Raises:
        MidblockError: other parameters or shapes, buffers that differ, or no difference at all.
    """
    moved = _moved(base, tuned, name)
    groups = ChannelGroups.of(Anatomy.of(base), moved)
    weights = {}
    for each in moved:
        parameter = base.get_parameter(each)
        rest, parameter.data = parameter.data, tuned.get_parameter(each).data
        weights[each] = SelectedWeight.of(parameter, rest, groups.channels[each])
    return groups, weights


def _moved(base: nn.Module, tuned: nn.Module, name: str) -> list[str]:
    """The parameters in which the two differ, by name, in the base's order.

    Raises:
        MidblockError: other names or shapes, buffers that differ, or no difference at all.
    """
    ours, theirs = dict(base.named_parameters()), dict(tuned.named_parameters())
    for other in sorted(ours.keys() ^ theirs.keys()):
        whose = "the base has no" if other in theirs else f"{name} has no"
        raise MidblockError(f"{name} was not tuned from the base: {whose} {other}")
    for each, value in ours.items():
        if value.shape != theirs[each].shape:
            shapes = f"{list(theirs[each].shape)} there and {list(value.shape)} in the base"
            raise MidblockError(f"{name} was not tuned from the base: {each} is {shapes}")
    stored = base.state_dict().keys()
    buffers = dict(tuned.named_buffers())
    for each, buffer in base.named_buffers():
        if each in stored and not torch.equal(buffer, buffers[each]):
            raise MidblockError(f"{name} differs from the base in the buffer {each}, which masks do not reach")
    moved = [each for each, value in ours.items() if not _same_bits(value.data, theirs[each].data)]
    if not moved:
        raise MidblockError(f"{name} has the base's weights to the bit: there is nothing to carve")
    return moved


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def _plain(settings: Any) -> Carving:
    """The options of carving alone."""
    return Carving(**{name: getattr(settings, name) for name in Carving.__dataclass_fields__})


def _types(base: Checkpoint, tuned: Checkpoint) -> dict[str, torch.dtype]:
    """The type that holds each parameter of both models' files; of codes, and of an adapter's sums, none is known."""
    if tuned.adapter is not None:
        return {}
    found: dict[str, torch.dtype] = {}
    for checkpoint in (base, tuned):
        with EffectiveTensors.of_checkpoint(checkpoint) as tensors:
            for name, pieces in tensors.by_name.items():
                kind = tensors.store.dtype(pieces[0].stored)
                kind = kind if kind in PLAIN else torch.float32
                found[name] = torch.promote_types(found.get(name, kind), kind)
    return found
