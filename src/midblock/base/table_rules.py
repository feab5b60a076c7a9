"""What the columns of a LayerTable hold, and the look at a table that was read: whoever wrote it may have been anyone.

A table that passes can be gone through by model, metric and layer without another look: its texts are texts, its
numbers numbers, its layers those of one model of known depth, and no two rows say the same of the same place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from midblock.base.errors import MidblockError
from midblock.base.json_file import shown
from midblock.base.states import MEASURED, NOT_DEFINED, STATES

if TYPE_CHECKING:
    import pandas as pd

COLUMNS: Mapping[str, str] = {
    "model": "string",
    "dataset": "string",
    "layer": "int64",
    "depth": "float64",
    "module": "string",
    "metric": "string",
    "value": "float64",
    "low": "float64",
    "high": "float64",
    "n": "int64",
    "state": "string",
}
TEXTS = tuple(name for name, kind in COLUMNS.items() if kind == "string")
PLACE = ["model", "dataset", "layer", "module", "metric"]  # of which a table has one row each
MAY_LACK = ("dataset", "value", "low", "high")
MOST_ROWS = 10_000_000
MOST_BLOCKS = 1_000
MOST_MODELS = 1_000
LONGEST = 10_000  # letters of a text


def checked_frame(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    """The columns of the contract in their types.

    Args:
        where: what to call the table in messages.

    Raises:
        MidblockError: a column that is missing or holds something else, layers that belong to no model, two rows about
            one place, or more models than anything could show.
    """
    if "state" not in frame and "value" in frame:
        frame = frame.assign(state=_of_earlier(frame.value))
    missing = [name for name in COLUMNS if name not in frame]
    if missing:
        raise MidblockError(f"{where} is no layer table: it lacks {', '.join(missing)}")
    columns = {name: _typed(frame[name], name, kind, where) for name, kind in COLUMNS.items()}
    found = frame[list(COLUMNS)].assign(**columns).reset_index(drop=True)
    _check_layers(found, where)
    return _once(found, where)


def _of_earlier(values: pd.Series[Any]) -> pd.Series[Any]:
    """The states in a table of a version that had none."""
    return values.isna().map({True: NOT_DEFINED, False: MEASURED}).astype("string")


def _typed(column: Any, name: str, kind: str, where: str) -> pd.Series[Any]:
    if name == "dataset":
        column = column.fillna("")
    if name not in MAY_LACK and column.isna().any():
        raise _wrong(where, name, "is empty in some rows")
    if kind == "string":
        return _texts(column, name, where)
    if column.dtype.kind not in "iuf" and not column.isna().all():
        raise _wrong(where, name, "is no column of numbers")
    if kind == "int64" and not (column % 1 == 0).all():
        raise _wrong(where, name, "holds what is no whole number")
    if kind == "int64" and not column.between(-1, 2**62).all():
        raise _wrong(where, name, "holds a number that is out of range")
    return column.astype(kind)


def _texts(column: pd.Series[Any], name: str, where: str) -> pd.Series[Any]:
    distinct = column.unique()
    if not all(isinstance(text, str) for text in distinct):
        raise _wrong(where, name, "is no column of texts")
    if any(len(text) > LONGEST for text in distinct):
        raise _wrong(where, name, f"holds a text of more than {LONGEST:,} letters")
    if name == "state" and (other := [text for text in distinct if text not in STATES]):
        raise _wrong(where, name, f"holds {shown(other[0])}, which is no state")
    if name == "model" and len(distinct) > MOST_MODELS:
        raise MidblockError(f"{where} tells of {len(distinct):,} models", hint=f"{MOST_MODELS:,} are the most")
    return column.astype("string")


def _check_layers(frame: pd.DataFrame, where: str) -> None:
    """Layers −1…L, whose depth says the same L everywhere."""
    inside = frame[frame.layer >= 0]
    if not frame.depth.between(0, MOST_BLOCKS).all() or (inside.depth == 0).any() or (frame.n < 0).any():
        raise _wrong(where, "depth" if (frame.n >= 0).all() else "n", "holds a number that is out of range")
    blocks = ((inside.layer + 1) / inside.depth).round(6)
    total = blocks.iloc[0] if len(inside) else 1
    if not ((blocks - total).abs() < 1e-3).all() or total % 1 or not 1 <= total <= MOST_BLOCKS:
        raise _wrong(where, "depth", "does not say how many blocks there are")
    if (frame.layer > total).any():
        raise MidblockError(f"{where} names layer {frame.layer.max()} of a model of {total:g} blocks", hint=AGAIN)


def _once(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    """Each place once; a row that only says what another says is no harm."""
    again = frame.duplicated(PLACE)
    if not again.any():
        return frame
    frame = frame.drop_duplicates(ignore_index=True)
    again = frame.duplicated(PLACE)
    if again.any():
        row = frame[again].iloc[0]
        what = f"{where} has two values of {shown(row.metric)} for {shown(row.model)} at layer {row.layer}"
        raise MidblockError(what, hint=AGAIN)
    return frame


AGAIN = "the run that wrote it can be made again"


def _wrong(where: str, column: str, how: str) -> MidblockError:
    return MidblockError(f"{where} is broken: its column {column} {how}", hint=AGAIN)
