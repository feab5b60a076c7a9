"""A finished study, recognised by its file alone: told again at once, before anything heavy is loaded.

Where anything is not as it was, or cannot be told from here, the long way decides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from midblock.base import MidblockError, user_path
from midblock.base.files import stamps
from midblock.runs.lenient import mapping, read_json
from midblock.runs.record import read_config, read_record
from midblock.studies.study.study_file import StudyFile

BASE_FILES, DATA_FILES = "the files of the base", "the files that are trained on"


def finished(folder: Path, file: Path, *, halving: bool, advice: bool) -> dict[str, Any] | None:
    """The summary of the finished study that `--resume` asks for; None where the long way has to look.

    Args:
        folder: the run folder.
        file: the study's.
        halving, advice: as `halving` and `score_recommendation` of `StudySettings`.
    """
    try:
        record = read_record(folder)
        if record.get("verb") != "study" or record.get("status") != "done":
            return None
        study = StudyFile.read(file)
        study = study.with_halving() if halving else study
        asked = study.with_advice() if advice else study
        if read_config(folder, hint="") != asked.as_config() or not _unchanged(record, study):
            return None
    except MidblockError:
        return None
    summary: dict[str, Any] = read_json(folder / "summary.json", {})
    whole = isinstance(summary.get("headline"), str) and (folder / "trials.parquet").exists()
    return summary if whole else None


def _unchanged(record: dict[str, Any], study: StudyFile) -> bool:
    inputs = mapping(record, "inputs")
    return all(inputs.get(name) == now for name, now in local_inputs(study).items())


def local_inputs(study: StudyFile) -> dict[str, list[list[str | int]]]:
    """Names, sizes and ages of the local files that a study reads, by what to call them.

    Raises:
        MidblockError: a place that cannot be looked at.
    """
    places = {BASE_FILES: user_path(study.base), DATA_FILES: user_path(study.data)}
    return {
        name: stamps(sorted(place.rglob("*")) if place.is_dir() else [place])
        for name, place in places.items()
        if place.exists()
    }
