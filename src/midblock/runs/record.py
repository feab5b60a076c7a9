"""What a run folder says of itself: `run.json`, how it was made and how far it got, and `config.yaml`, its settings.

Read strictly, for whoever goes on with the run or takes its word; a page leaves out what it cannot read (`lenient`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from midblock.base import MidblockError
from midblock.base.json_file import read_object
from midblock.base.yaml_file import read_settings

RECORD = "run.json"
CONFIG = "config.yaml"


def read_record(path: Path | str) -> dict[str, Any]:
    """Read `run.json` of a run folder.

    Raises:
        MidblockError: when it is not there or cannot be read.
    """
    try:
        return read_object(Path(path) / RECORD)
    except MidblockError as error:
        raise MidblockError(f"{path} is no run folder: {RECORD} is missing or broken") from error


def read_config(path: Path | str, *, hint: str) -> dict[str, Any]:
    """Read `config.yaml` of a run folder.

    Raises:
        MidblockError: when it is not there or cannot be read; with the hint.
    """
    file = Path(path) / CONFIG
    try:
        return read_settings(file)
    except MidblockError as error:
        raise MidblockError(f"{file} is missing or broken", hint=hint) from error
