"""Forecast: where a pair fits on this machine, how long an analysis will take, and what it writes; honest intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from midblock.base.files import size_text
from midblock.checkpoints import Anatomy
from midblock.interventions import SwapSettings
from midblock.studies.doctor.about import About
from midblock.studies.doctor.demand import Demand, Shape
from midblock.studies.doctor.machine import Device
from midblock.studies.doctor.speed import Speed, work_of
from midblock.tuning import TuneSettings

# What the rest costs on one core of a server of these years; fitted to runs that docs/cost.md shows, so a guide.
START = About(2.0, 8.0)  # seconds: imports, reading and tokenising the prompts
A_ROW = 1.2e-9  # seconds for each number of the vocabulary that two models' predictions are compared by
AN_ESTIMATE, A_PROMPT = 0.05, 6e-5  # seconds for each layer's intervals, and for each prompt and root of the width
COPYING = 1.5e9  # bytes a second that weights are brought into memory with, their type changed
DOUBLES = 0.5  # operations a second in float64, of those that passes make
ANSWERS = 0.5  # share of a sample's tokens that belong to its answer
BACKWARD = 3.0  # a training step of adapters on every block, in forward passes
PART_OF_A_PASS = 0.6  # a swap's cell starts where it differs
PASSING = (0.8, 1.8)  # a whole pass beside a few blocks measured alone: hooks, reductions, other work on the machine


@dataclass(frozen=True)
class Fit:
    """Whether the models fit on a device.

    Attributes:
        whole: bytes with all models in memory at once.
        by_block: the least bytes in which they can be walked block by block; None where they cannot.
    """

    device: Device
    whole: int
    by_block: int | None

    @property
    def fits(self) -> bool:
        return self.whole <= self.device.available

    @property
    def fits_by_block(self) -> bool:
        return self.by_block is not None and self.by_block <= self.device.available

    def __str__(self) -> str:
        has = f"{self.device.name} ({self.device.title}): {size_text(self.device.available)} of "
        has += f"{size_text(self.device.total)} free"
        if self.fits:
            return f"{has}; about {size_text(self.whole)} wanted: all models fit"
        wanted = f"{has}; about {size_text(self.whole)} wanted"
        if self.by_block is None:
            return f"{wanted}: they do not fit, and cannot be walked block by block"
        least = size_text(self.by_block)
        return f"{wanted}: block by block {f'only, from {least}' if self.fits_by_block else f'too: {least}'}"

    def as_record(self) -> dict[str, Any]:
        return {
            "device": self.device.name,
            "title": self.device.title,
            "total_bytes": self.device.total,
            "available_bytes": self.device.available,
            "whole_bytes": self.whole,
            "block_by_block_bytes": self.by_block,
            "fits": self.fits,
            "fits_block_by_block": self.fits_by_block,
        }


def fits_of(demand: Demand, by_block: int | None, devices: Sequence[Device]) -> list[Fit]:
    """The models on each device that is there."""
    return [Fit(device, demand.whole, by_block) for device in devices]


def phases_of(demand: Demand, speed: Speed) -> dict[str, About]:
    """How long each phase of an analysis will take, in seconds.

    Returns:
        `start`, `load`, `measure`, `evaluate`, `weights`, by the names that run folders give them where they have one.
    """
    below, above = PASSING
    reading = demand.file_bytes / speed.reading
    passes = About.of(demand.passes / speed.operations, below, above)
    heads = About.of(demand.heads / speed.operations + demand.rows_read * A_ROW, 0.5, 2.0)
    a_layer = AN_ESTIMATE + A_PROMPT * demand.prompts * demand.width**0.5
    weights = demand.weights / (DOUBLES * speed.operations)
    return {
        "start": START,
        "load": About.of(reading + sum(demand.model_bytes) / COPYING, 0.5, 2.0),
        "measure": passes + heads,
        "evaluate": About.of(demand.estimates * a_layer, 0.4, 2.0),
        "weights": About.of(3 * reading + weights, 0.4, 2.5),
    }


def others_of(shape: Shape, anatomy: Anatomy, speed: Speed, models: int) -> dict[str, About]:
    """Seconds that other verbs take on prompts like these, at their defaults, loading left out.

    Returns:
        `probe` and `swap` of their samples, and one `tune_step` of LoRA on every block.
    """
    asked = SwapSettings(segments=str(min(int(SwapSettings().segments), len(anatomy))))
    tuning = TuneSettings()
    tokens = asked.num_samples * shape.tokens / shape.prompts
    a_pass = tokens * work_of(anatomy, shape.length) / speed.operations
    answers = tokens * ANSWERS * 2.0 * anatomy.width * anatomy.config.vocab_size / speed.operations
    probe = models * (a_pass + (len(anatomy) + 1) * answers)
    cells = len(asked.cells(len(anatomy))) if models > 1 else 0
    batch = tuning.per_device_train_batch_size * tuning.gradient_accumulation_steps
    step = batch * min(shape.length, tuning.max_length) * BACKWARD * work_of(anatomy, shape.length) / speed.operations
    found = {"probe": About.of(probe, 0.5, 2.0), "tune_step": About.of(step, 0.7, 2.0)}
    return found | ({"swap": About.of(cells * (a_pass * PART_OF_A_PASS + answers), 0.5, 2.0)} if cells else {})


def total_of(phases: dict[str, About]) -> About:
    """All phases together."""
    found = About(0.0, 0.0)
    for each in phases.values():
        found += each
    return found
