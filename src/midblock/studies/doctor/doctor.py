"""`doctor`: a base and what was tuned from it in, a Checkup out; what a run would meet, before it starts.

Nothing is loaded and nothing is written. Cost: opening files and tokenizers, reading the prompts, and a measurement of
a few seconds. Described in docs/doctor.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from midblock.analysis.analyze import analysis_engine
from midblock.analysis.settings import AnalysisSettings
from midblock.analysis.work import kinds_of
from midblock.base import MidblockError, divide
from midblock.base.files import size_text
from midblock.checkpoints import LoadSettings, Pair, load_models
from midblock.checkpoints.footprint import Footprint, dtype_in_memory
from midblock.checkpoints.models import pick_device
from midblock.checkpoints.skeleton import anatomy_of, skeleton_of
from midblock.runs.reading import DEFAULT_DATA
from midblock.studies.doctor.about import About
from midblock.studies.doctor.demand import Demand, Shape
from midblock.studies.doctor.finding import CARE, STOPS, Finding
from midblock.studies.doctor.forecast import Fit, fits_of, others_of, phases_of, total_of
from midblock.studies.doctor.machine import Device, devices, free_disk, surface
from midblock.studies.doctor.packages import package_findings, versions
from midblock.studies.doctor.pair_checks import examine, file_bytes
from midblock.studies.doctor.speed import Speed, measure
from midblock.trace.engine import BLOCKS, WHOLE, engine_of, least_by_blocks


@dataclass(frozen=True)
class Forecast:
    """What an analysis would take here.

    Attributes:
        dtype, device: it would compute in, and on.
        path: how the run will walk the models: "whole models" or "block by block".
        why: in a sentence.
        fits: the models on each device.
        phases: seconds of each phase of an analysis.
        others: seconds of other verbs at their defaults, by name, where that is cheap to tell.
        folder, partial: bytes that are left on disk, and that are needed until the run is whole.
        free: bytes that are free there.
    """

    dtype: str
    device: str
    path: str
    why: str
    fits: list[Fit]
    demand: Demand
    speed: Speed
    phases: dict[str, About]
    others: dict[str, About]
    folder: int
    partial: int
    free: int

    @property
    def total(self) -> About:
        """Seconds of an analysis, loading included."""
        return total_of(self.phases)

    def as_record(self) -> dict[str, Any]:
        return {
            "dtype": self.dtype,
            "device": self.device,
            "path": self.path,
            "why": self.why,
            "fits": [each.as_record() for each in self.fits],
            "demand": asdict(self.demand),
            "speed": asdict(self.speed),
            "seconds": {
                **{name: each.as_record() for name, each in self.phases.items()},
                "all": self.total.as_record(),
            },
            "other_verbs": {name: each.as_record() for name, each in self.others.items()},
            "disk": {"folder_bytes": self.folder, "partial_bytes": self.partial, "free_bytes": self.free},
        }


@dataclass(frozen=True)
class Checkup:
    """What the doctor says.

    Attributes:
        packages: versions, None of what is not installed.
        devices: where models can run.
        surface: Python, threads, cache.
        findings: everything that was seen, in the order it was looked at.
        forecast: None where the models could not be opened.
    """

    packages: Mapping[str, str | None]
    devices: list[Device]
    surface: Mapping[str, Any]
    findings: list[Finding] = field(default_factory=list)
    forecast: Forecast | None = None

    @property
    def stopping(self) -> list[Finding]:
        """What the run would stop with."""
        return [each for each in self.findings if each.level == STOPS]

    @property
    def starts(self) -> bool:
        """Whether the run would start."""
        return not self.stopping

    def as_record(self) -> dict[str, Any]:
        """For programs."""
        return {
            "starts": self.starts,
            "findings": [each.as_record() for each in self.findings],
            "forecast": self.forecast.as_record() if self.forecast else None,
            "packages": dict(self.packages),
            "devices": [asdict(each) for each in self.devices],
            **self.surface,
        }


def doctor(base: str, *tuned: str, data: str | None = DEFAULT_DATA, **options: Any) -> Checkup:
    """Say what an analysis would meet: whether it starts, where the models fit, how long it takes, what it writes.

    Args:
        base, tuned: model references; without a tuned one, what a `probe` or `tune` of the base would meet.
        data: the dataset reference; None reads none, and counts with the most that the settings can ask for.
        **options: fields of `AnalysisSettings` and of `LoadSettings`, as the analysis would be given them.

    Raises:
        MidblockError: an unknown option, or a value out of range; whatever else is wrong is a finding.

    Example:
        >>> found = doctor(base, tuned, data=data, num_samples=12)
        >>> found.starts, found.forecast.path
        (True, 'whole models')
    """
    settings, loading = divide(options, AnalysisSettings, LoadSettings)
    found = Checkup(versions(), devices(), surface(), package_findings())
    try:
        pair = load_models(base, *tuned, **asdict(loading))
    except MidblockError as error:
        return _with(found, [Finding.of_error(error)])
    examined = examine(pair, None if settings.weights_only else data, settings)
    found = _with(found, examined.findings)
    if not found.starts:
        return found
    shape = Shape.of(examined.prompts) if examined.prompts is not None else Shape.asked(settings)
    try:
        forecast = _forecast(pair, shape, settings, found.devices)
    except MidblockError as error:
        return _with(found, [Finding.of_error(error)])
    return _with(found, _of_room(forecast), forecast)


def _with(checkup: Checkup, findings: list[Finding], forecast: Forecast | None = None) -> Checkup:
    return Checkup(checkup.packages, checkup.devices, checkup.surface, [*checkup.findings, *findings], forecast)


def _forecast(pair: Pair, shape: Shape, settings: AnalysisSettings, there: list[Device]) -> Forecast:
    checkpoints = [each.checkpoint for each in pair if each.checkpoint is not None]
    loading = pair.base.loading
    device = pick_device(loading.device)
    dtype = dtype_in_memory(checkpoints[0], loading)
    skeleton = skeleton_of(checkpoints[0].config, trust_remote_code=checkpoints[0].trust_remote_code)
    anatomy = anatomy_of(skeleton)
    footprints = [Footprint.of(each, dtype) for each in checkpoints]
    demand = Demand.of(anatomy, footprints, shape, settings, dtype, file_bytes(pair))
    by_block = _least_by_blocks(pair, settings)
    fits = fits_of(demand, by_block, there)
    with engine_of(pair):
        engine = analysis_engine(pair, settings, kinds_of(settings))
    path, why = engine.kind, engine.why or _why_whole(fits, device)
    speed = measure(checkpoints[0], dtype, device, (shape.rows, shape.length))
    return Forecast(
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        path=path,
        why=why,
        fits=fits,
        demand=demand,
        speed=speed,
        phases=phases_of(demand, speed),
        others=others_of(shape, anatomy, speed, len(checkpoints)),
        folder=demand.folder,
        partial=demand.partial + (demand.held_on_disk if path == BLOCKS else 0),
        free=free_disk(Path.cwd()),
    )


def _rounded(settings: AnalysisSettings) -> bool:
    return "floor" in kinds_of(settings)


def _least_by_blocks(pair: Pair, settings: AnalysisSettings) -> int | None:
    """As the run reckons it; None for models that cannot be walked so."""
    try:
        with engine_of(pair):
            return least_by_blocks(pair, tokens=settings.batch_tokens, rounded=_rounded(settings))
    except MidblockError:
        return None


def _mine(fits: list[Fit], device: torch.device) -> Fit:
    """On the device that is asked for."""
    return next((each for each in fits if torch.device(each.device.name).type == device.type), fits[0])


def _why_whole(fits: list[Fit], device: torch.device) -> str:
    mine = _mine(fits, device)
    return (
        f"all models take about {size_text(mine.whole)} with what is computed, and {mine.device.name} has "
        f"{size_text(mine.device.available)} free"
    )


def _of_room(forecast: Forecast) -> list[Finding]:
    """What memory and disk would stop."""
    found = []
    if forecast.path == WHOLE and not _mine(forecast.fits, torch.device(forecast.device)).fits:
        cure = "--max-memory walks them block by block; or --dtype bfloat16, or fewer prompts"
        found.append(Finding(CARE, f"memory will be short: {forecast.why}", cure))
    wanted = forecast.folder + forecast.partial
    if wanted > forecast.free:
        what = f"not enough disk: about {size_text(wanted)} are wanted, {size_text(forecast.free)} are free here"
        found.append(Finding(STOPS, what, "another --output-dir, or fewer prompts"))
    return found
