"""layers.parquet and layers.csv."""

from pathlib import Path
from typing import Any

import pandas as pd
from hypothesis import strategies as st

from midblock.base.layer_table import COLUMNS

from .kind import Kind, cases_of
from .nasty import BREAKAGES, Spoil, broken
from .test_run_folders import VERBS, harmless

CELLS: dict[str, Any] = {
    "null": None, "NaN": float("nan"), "Infinity": float("inf"), "zero": 0, "minus one": -1, "minus five": -5,
    "a half": 0.5, "ten million": 10**7, "10^12": 10**12, "2^63 - 1": 2**63 - 1, "1e308": 1e308, "no text": "",
    "a word": "nonsense", "a number as text": "3", "control characters": "\x1b[31m\r\n\x07", "a formula": "=1+1",
    "markup": "</script><script>window.hacked=1</script><img src=x>", "100,000 letters": "a" * 100_000, "true": True,
    "a list": [1, 2], "bytes": b"\xff\xfe", "a date": pd.Timestamp("2020-01-01"), "base": "base",
}  # fmt: skip
AUTO = ("tune", "start", "--data", "sums.jsonl", "--max-steps", "1", "--device", "cpu", "-o", "OUT", "--layers")
TABLES = ("no rows", "every row twice", "last row first", "one column more", "two hundred times", "100,000 models")


def ways(frame: pd.DataFrame) -> st.SearchStrategy[Spoil]:
    column, cell = st.sampled_from(list(COLUMNS)), st.sampled_from(list(CELLS))
    row = st.sampled_from((0, 1, len(frame) // 2, len(frame) - 1, "all"))
    one = st.builds(Spoil, st.just("set"), st.tuples(column, row), cell)
    gone = st.builds(Spoil, st.just("drop"), st.tuples(column))
    table = st.builds(Spoil, st.just("table"), st.just(()), st.sampled_from(TABLES))
    return st.one_of(
        one, one, one, one, gone, table, st.builds(Spoil, st.just("file"), st.just(()), st.sampled_from(BREAKAGES))
    )


def write(file: Path, frame: pd.DataFrame, spoil: Spoil) -> None:
    if spoil.how == "file":
        file.write_bytes(broken(file.read_bytes(), spoil.what))
        return
    changed = _changed(frame, spoil)
    if file.suffix == ".csv":
        changed.to_csv(file, index=False)
        return
    try:
        changed.to_parquet(file, index=False)
    except (ValueError, TypeError, OverflowError):  # a column of several types: Parquet has none, text holds all
        changed.assign(**{spoil.where[0]: [str(cell) for cell in changed[spoil.where[0]]]}).to_parquet(
            file, index=False
        )


def _changed(frame: pd.DataFrame, spoil: Spoil) -> pd.DataFrame:
    if spoil.how == "drop":
        return frame.drop(columns=[spoil.where[0]])
    if spoil.how == "table":
        return {
            "no rows": lambda: frame.iloc[:0],
            "every row twice": lambda: pd.concat([frame, frame.assign(value=frame.value + 1)]),
            "last row first": lambda: frame.iloc[::-1],
            "one column more": lambda: frame.assign(more="x"),
            "two hundred times": lambda: pd.concat([frame] * 200),
            "100,000 models": lambda: _named(pd.concat([frame] * (10**5 // len(frame)))),
        }[spoil.what]()
    column, row = spoil.where
    cells = frame[column].astype(object).tolist()
    for place in range(len(cells)) if row == "all" else [row]:
        cells[place] = CELLS[spoil.what]
    return frame.assign(**{str(column): pd.Series(cells, dtype=None if row == "all" else object)})


def _named(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(model=[f"m{n}" for n in range(len(frame))])


def kind_of(verb: str, cases: int) -> Kind:
    other = "flow" if verb == "merge" else "merge"
    commands = [
        ("report", verb, "--output-dir", "OUT"),
        ("report", verb, other, "--output-dir", "OUT"),
        ("report", other, verb, "--output-dir", "OUT"),
    ]
    if verb == "analysis":
        commands.append((*AUTO, "auto:analysis"))
    return Kind(
        f"layers.parquet of {verb}", f"{verb}/layers.parquet", commands, (verb, other, "start", "sums.jsonl"), cases,
        pd.read_parquet, ways, write, also=harmless, meant=lambda spoil: True,
    )  # fmt: skip


CSV = Kind(
    "layers.csv", "analysis/layers.csv",
    [(*AUTO, "auto:analysis/layers.csv")],
    ("analysis", "start", "sums.jsonl"), 8, pd.read_csv, ways, write, meant=lambda spoil: True,
)  # fmt: skip

KINDS = [*(kind_of(verb, 5) for verb in VERBS), CSV]

test = cases_of(KINDS)
