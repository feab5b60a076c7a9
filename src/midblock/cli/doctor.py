"""`midblock doctor`: parse, call `midblock.doctor`, print what it says; exit code 2 where the run would not start."""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

from rich.console import Console

from midblock.analysis import AnalysisSettings
from midblock.base import MidblockError
from midblock.base.files import size_text
from midblock.base.plural import counted
from midblock.base.quoting import printable
from midblock.checkpoints import LoadSettings
from midblock.cli.life import Flat
from midblock.runs.reading import DEFAULT_DATA
from midblock.studies.doctor.doctor import Checkup, Forecast
from midblock.studies.doctor.doctor import doctor as run_doctor
from midblock.studies.doctor.finding import CARE, STOPS, TOLD

MARKS = {STOPS: "STOPS", CARE: "care ", TOLD: "     "}
PHASES = {"start": "data", "load": "loading", "measure": "measuring", "evaluate": "intervals", "weights": "weights"}


def doctor(
    base: str,
    tuned: tuple[str, ...] = (),
    *,
    data: str = DEFAULT_DATA,
    settings: Annotated[AnalysisSettings | None, Flat] = None,
    loading: Annotated[LoadSettings | None, Flat] = None,
    json: bool = False,
) -> None:
    """Say before a run whether it would start, where the models fit, how long it takes and what it writes.

    No model is loaded and nothing is written. Give it what `midblock analyze` would be given.

    Args:
        base: model before tuning: `org/name[@rev]`, a folder, a `.gguf` file or `builtin:smollm2-135m-instruct`.
        tuned: models tuned from it, or none.
        data: prompts: `builtin:gsm_symbolic`, `gsm8k`, a hub set, a `.jsonl`, `.json` or `.parquet` file.
        json: print everything as JSON on standard output, for programs.
    """
    options = {**asdict(settings or AnalysisSettings()), **asdict(loading or LoadSettings())}
    found = run_doctor(base, *tuned, data=data, **options)
    if json:
        print(json_format.dumps(found.as_record(), indent=2))
    else:
        console = Console(file=sys.stdout, markup=False, highlight=False)
        for line in told(found):
            console.print(printable(line), soft_wrap=True)
    if not found.starts:
        first = found.stopping[0]
        raise MidblockError(f"the run would not start: {first.what}", hint=first.cure or None)


def told(found: Checkup) -> Iterator[str]:
    """What is printed, line by line."""
    surface = found.surface
    yield "Packages: " + ", ".join(f"{name} {version or '–'}" for name, version in found.packages.items())
    threads = f"{counted(surface['threads'], 'thread')} on {counted(surface['cores'], 'core')}"
    yield f"Machine: Python {surface['python']} on {surface['system']}, {threads}"
    cache = surface["cache"]
    yield f"Cache: {cache['folder']}, {size_text(cache['bytes'])}"
    yield ""
    for each in found.findings:
        yield f"{MARKS[each.level]} {each}"
    if found.forecast is not None:
        yield ""
        yield from _forecast(found.forecast)
    yield ""
    yield "The run would start." if found.starts else "The run would not start."


def _forecast(forecast: Forecast) -> Iterator[str]:
    for fit in forecast.fits:
        yield f"Memory: {fit}"
    yield f"Path: {forecast.path}, in {forecast.dtype} on {forecast.device}: {forecast.why}"
    parts = ", ".join(f"{PHASES[name]} {each.seconds}" for name, each in forecast.phases.items())
    yield f"Time of analyze: about {forecast.total.seconds} ({parts})"
    yield f"Measured for that: {_measured(forecast)}"
    others = ", ".join(f"{name.replace('_', ' ')} {each.seconds}" for name, each in forecast.others.items())
    yield f"Other verbs, about: {others}"
    disk = f"Disk: about {size_text(forecast.folder)} for the run folder, {size_text(forecast.partial)} more until it "
    yield f"{disk}is whole; {size_text(forecast.free)} are free here"


def _measured(forecast: Forecast) -> str:
    speed = forecast.speed
    rate = f"{speed.operations / 1e9:,.0f} billion operations a second"
    by = (
        f"{counted(speed.blocks, 'block')} of this kind"
        if speed.blocks
        else f"a product of matrices (no block: {speed.reason})"
    )
    return f"{by}, {rate}; a file at {size_text(int(speed.reading))} a second; {speed.seconds:.1f} s"
