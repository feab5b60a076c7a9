"""Tables on disk: each as Parquet, and as CSV in which no text is a spreadsheet's formula."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from midblock.base.errors import MidblockError
from midblock.base.files import replace_atomically
from midblock.base.plain_file import check_plain_file
from midblock.base.quoting import cell

if TYPE_CHECKING:
    import pandas as pd


def write_frame(frame: pd.DataFrame, folder: Path, name: str, texts: Sequence[str]) -> None:
    """Write `NAME.parquet` and the same rows as `NAME.csv`.

    Args:
        texts: columns that hold text.

    Raises:
        MidblockError: the disk is full, or the place cannot be written.
    """
    with replace_atomically(folder / f"{name}.parquet") as path, path.open("wb") as stream:
        frame.to_parquet(stream, index=False)
    with replace_atomically(folder / f"{name}.csv") as path:
        safe = {column: frame[column].map(cell, na_action="ignore") for column in texts}
        frame.assign(**safe).to_csv(path, index=False, float_format="%.17g")


def read_frame(file: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a table that `write_frame` left.

    Args:
        file: the Parquet file.
        columns: those that must be there, and are given.

    Raises:
        MidblockError: it is missing or broken, or lacks a column.
    """
    import pandas as pd

    if not file.exists():
        raise MidblockError(f"no table at {file}", hint="--overwrite makes the run anew")
    check_plain_file(file)
    try:
        with file.open("rb") as stream:
            return pd.read_parquet(stream, columns=list(columns))
    except (ValueError, OSError, KeyError) as error:
        raise MidblockError(f"{file} is broken or another table: {' '.join(str(error).split())}") from error
