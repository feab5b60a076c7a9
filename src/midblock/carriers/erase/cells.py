"""Cells: which models are given a soft prompt, by which channels, and what is trained and measured in each.

Ablations: a carrier's model or plain SFT × the carrier's channels, as many random ones, or predictions alone. Each cell
has several starts; the best by held-out prompts is used. Beside it stand two nulls: the start that it came from, and a
random prompt whose vectors have the same norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from midblock.base import MidblockError, generator
from midblock.base.seal import fingerprint
from midblock.carriers.erase.channels import Channels, all_channels, other_channels, overlap, written_channels
from midblock.carriers.erase.ends import Ends, ends_of
from midblock.carriers.erase.found import Found, Keeping
from midblock.carriers.erase.samples import HELD, TRAIN, Samples
from midblock.carriers.erase.settings import ALL, AUTO, CARRIER, NONE, RANDOM, EraseSettings
from midblock.carriers.erase.training import Material, Training
from midblock.checkpoints import Anatomy, SoftPrompt, Variant, prompted
from midblock.runs.run import Bench

TITLES = {CARRIER: "carrier channels", RANDOM: "random channels", ALL: "all channels", NONE: "predictions alone"}


@dataclass(frozen=True)
class Cell:
    """A model and the channels that are matched.

    Attributes:
        model: its name.
        channels: "carrier", "random", "all" or "none".
    """

    model: str
    channels: str

    @property
    def name(self) -> str:
        """As of a folder: a model's name may hold a branch of the hub."""
        return f"{self.model}-{self.channels}".replace("/", "-")

    @property
    def title(self) -> str:
        return f"{self.model}, {TITLES[self.channels]}"


def check_channels(settings: EraseSettings, carried: bool) -> None:
    """Raise MidblockError where channels of a carrier are asked for, and there is none."""
    if not carried and (settings.grid or settings.channels in (CARRIER, RANDOM)):
        what = "the model holds no carrier, so no channels are its own"
        raise MidblockError(what, hint="--channels all or none, without --grid; or give the carrier's folder")


def cells_of(settings: EraseSettings, models: tuple[str, ...], carried: bool) -> list[Cell]:
    """The cells to train, the one that the run is about first.

    Args:
        models: names of the tuned models, the carrier's first.
        carried: a carrier says which channels are its own.
    """
    asked = (CARRIER if carried else ALL) if settings.channels == AUTO else settings.channels
    if not settings.grid:
        return [Cell(models[0], asked)]
    return [Cell(model, channels) for model in models for channels in (CARRIER, RANDOM, NONE)]


@dataclass(frozen=True, eq=False)
class Trained:
    """A cell after its training.

    Attributes:
        starts: what was found from each.
    """

    cell: Cell
    starts: tuple[Found, ...]

    @property
    def chosen(self) -> int:
        """The start whose best prompt has the lowest J on held-out prompts."""
        return min(range(len(self.starts)), key=lambda start: self.starts[start].best_loss)

    @property
    def best(self) -> Found:
        return self.starts[self.chosen]

    def random(self, seed: int) -> Tensor:
        """Vectors in random directions, each of the norm of the best prompt's."""
        best = self.best.best
        draw = torch.from_numpy(generator(seed, "erase", "null", self.cell.name).standard_normal(best.shape)).float()
        return draw / draw.norm(dim=1, keepdim=True) * best.norm(dim=1, keepdim=True)


@dataclass(eq=False)
class Cells:
    """Trains cells; what the base does at the prompts' ends is read once for each choice of channels.

    Attributes:
        base: the model to get back to.
        tuned: the models whose behaviour is to go, by name.
        masks: of the carriers; none where there is no carrier.
        bos: id of the token that begins a text.
    """

    base: Variant
    tuned: Mapping[str, Variant]
    masks: tuple[Mapping[tuple[int, str], Tensor], ...]
    samples: Samples
    settings: EraseSettings
    bos: int | None
    _known: dict[str, tuple[Channels, Material, Material]] = field(default_factory=dict)

    def train(self, cell: Cell, bench: Bench) -> Trained:
        """Train a cell's starts one after another, or go on where that was stopped."""
        settings = self.settings
        channels, train, held = self._material(cell.channels, bench)
        training = Training(
            self.tuned[cell.model].model, self._base, channels, train, held, settings.training, self.bos
        )
        steps = settings.starts * settings.max_steps
        advance = bench.progress.phase(f"training soft prompts: {cell.title}", steps)
        folder = bench.partial / cell.name if bench.partial is not None else None
        keeping = Keeping(folder, fingerprint(bench.owner, cell.name), bench.notes)
        return Trained(cell, tuple(training.run(start, advance, keeping) for start in range(settings.starts)))

    def soft(self, cell: Cell, values: Tensor, weight_hash: str | None = None, **made: object) -> SoftPrompt:
        """Vectors as a soft prompt of a cell's model.

        Args:
            **made: how they were made.
        """
        base = self.tuned[cell.model].reference
        return SoftPrompt(values, base, self.settings.position, self.bos, weight_hash, made)

    def given(self, cell: Cell, values: Tensor) -> nn.Module:
        """The cell's model with these vectors before its prompts."""
        return prompted(self.tuned[cell.model].model, self.soft(cell, values), cell.model)

    def channels_of(self, name: str) -> Channels:
        """The channels that a cell matches."""
        blocks, width = int(self.base.config.num_hidden_layers), int(self.base.config.hidden_size)
        if name == NONE:
            return {}
        if name == ALL:
            return all_channels(blocks, width)
        own = written_channels(self.masks, blocks, width)
        return own if name == CARRIER else other_channels(own, width, self.settings.seed)

    def overlap(self) -> float:
        """Share of the random channels that are the carrier's all the same."""
        return overlap(self.channels_of(RANDOM), self.channels_of(CARRIER))

    @cached_property
    def _base(self) -> Anatomy:
        return Anatomy.of(self.base.model)

    def _material(self, name: str, bench: Bench) -> tuple[Channels, Material, Material]:
        if name not in self._known:
            channels = self.channels_of(name)
            kinds = [self.samples.kinds[each] for each in (TRAIN, HELD)]
            advance = bench.progress.phase("reading the base", sum(map(len, kinds)))
            settings, base = self.settings, self.base.model
            base.eval()
            read = partial(ends_of, self._base, channels=channels, last=settings.last_tokens, batch=settings.batch_size)
            ends: list[Ends] = [read(each.rows, advance=advance) for each in kinds]
            train, held = (Material(each.rows, end) for each, end in zip(kinds, ends, strict=True))
            self._known[name] = channels, train, held
        return self._known[name]


def prompt_folder(cells: list[Cell], cell: Cell) -> Path:
    """Where a cell's soft prompt lies in the run folder: the first one's is the run's own."""
    return Path("prompt") if cell == cells[0] else Path("prompts") / cell.name
