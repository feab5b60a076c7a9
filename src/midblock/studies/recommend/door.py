"""Which of the three doors a recommendation comes through: decided by what is given, never guessed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from midblock.base import MidblockError, user_path
from midblock.runs.lenient import read_json
from midblock.runs.record import RECORD
from midblock.runs.verbs import VERBS

Door = Literal["runs", "pilot", "repair"]
DOORS = (
    "recommend RUN… reads runs, recommend BASE --data DATA makes a pilot, recommend BASE TUNED --general DATA repairs"
)
MODELS = ("merge", "tune")  # verbs whose run folder is a model reference


def door_of(about: Sequence[str], data: str | None, general: str | None) -> Door:
    """The door that the arguments mean.

    Args:
        about: run folders or model references.

    Raises:
        MidblockError: they mean none of the doors, or could mean two.
    """
    runs = [is_run(each) for each in about]
    if about and all(runs) and data is None and general is None:
        return "runs"
    if not any(runs) and len(about) == 1 and data is not None and general is None:
        return "pilot"
    if not any(runs) and len(about) == 2 and general is not None:
        return "repair"
    raise MidblockError(f"cannot tell what to recommend from: {_why(about, runs, data, general)}", hint=DOORS)


def is_run(reference: str) -> bool:
    """Whether a reference leads to a run folder that is no model."""
    try:
        folder = user_path(reference)
    except MidblockError:
        return False
    record: dict[str, Any] = read_json(Path(folder) / RECORD, {})
    verb = record.get("verb") if (Path(folder) / RECORD).is_file() else None
    table_alone = (Path(folder) / "layers.parquet").is_file() and not (Path(folder) / RECORD).is_file()
    return table_alone or (isinstance(verb, str) and verb in VERBS and verb not in MODELS)


def _why(about: Sequence[str], runs: Sequence[bool], data: str | None, general: str | None) -> str:
    models = [each for each, run in zip(about, runs, strict=True) if not run]
    if not about:
        return "nothing is given"
    if not models:
        return f"runs were measured already and take no {'data' if data is not None else 'general data'}"
    if len(models) < len(about):
        one = next(each for each, run in zip(about, runs, strict=True) if run)
        return f"{one} is a run, {models[0]} is no run that tells about depth"
    if len(models) == 1:
        alone = f"{models[0]} is no run that tells about depth, and no data is given"
        return "one model and general data" if general is not None else alone
    if len(models) == 2:
        return "two models and no general data"
    return f"{len(models)} models"
