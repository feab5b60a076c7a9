"""The page's data: the table as compact series in one JSON island that no text can break out of."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from midblock.base.states import MEASURED, STATES
from midblock.report.read.reading import Run, describe
from midblock.runs.finished import BASE

if TYPE_CHECKING:
    import pandas as pd

DIGITS = 7
SAMPLE = r".+\.seed\d+"
HARMFUL = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def island(value: Any) -> str:
    """Write JSON that may stand inside <script type="application/json">."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(HARMFUL)


def page_data(run: Run, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the scripts draw from."""
    metrics = {name.partition(".")[0] for name in run.table.metrics}
    frame = run.table.frame
    shown = frame[~frame.metric.str.fullmatch(SAMPLE)]  # the samples' range is drawn, not each of them
    return {
        "blocks": run.blocks,
        "models": [BASE, *run.tuned],
        "metrics": {name: _metric(name) for name in sorted(metrics)},
        "series": [_series(key, rows) for key, rows in _groups(shown)],
        "states": dict(STATES),
        "figures": figures,
        "depths": {name: _depths(run.summary_of(name)) for name in run.tuned if run.summary_of(name)},
    }


def _metric(name: str) -> dict[str, Any]:
    entry = describe(name)
    return {"title": entry.title, "unit": entry.unit, "bounds": list(entry.bounds)}


def _depths(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        kind: {"center": depth_number(entry, f"{kind}_depth"), "thirds": thirds_of(entry, f"{kind}_depth")}
        for kind in ("own", "weight", "representation")
    }


def depth_number(entry: Mapping[str, Any], kind: str, key: str = "center") -> float | None:
    """One number of a summary's depth entry, None where it is missing or not finite."""
    depth = entry.get(kind)
    value = depth.get(key) if isinstance(depth, dict) else None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def thirds_of(entry: Mapping[str, Any], kind: str) -> list[float] | None:
    """The shares of the lower, middle and upper third, None unless all three are there."""
    depth = entry.get(kind)
    thirds = depth.get("thirds") if isinstance(depth, dict) else None
    if not isinstance(thirds, list) or len(thirds) != 3:
        return None
    return [float(t) for t in thirds] if all(isinstance(t, int | float) and math.isfinite(t) for t in thirds) else None


def _groups(frame: pd.DataFrame) -> Iterable[tuple[tuple[str, ...], pd.DataFrame]]:
    by = ["metric", "model", "module", "dataset"]
    for key, rows in frame.groupby(by, sort=False):
        yield tuple(map(str, key)), rows.sort_values("layer", kind="stable")


def _series(key: tuple[str, ...], rows: pd.DataFrame) -> dict[str, Any]:
    metric, model, module, dataset = key
    counts = rows["n"].to_numpy().tolist()
    series: dict[str, Any] = {
        "metric": metric,
        "model": model,
        "module": module,
        "dataset": dataset,
        "layer": rows["layer"].to_numpy().tolist(),
        "value": numbers(rows.value),
        "n": counts[0] if len(set(counts)) == 1 else counts,
    }
    for bound in ("low", "high"):
        if rows[bound].notna().any():
            series[bound] = numbers(rows[bound])
    if (rows.state != MEASURED).any():
        series["state"] = rows.state.tolist()
    return series


def numbers(column: Iterable[float]) -> list[float | int | None]:
    """Shortened for the page; what is not finite becomes None."""
    return [_short(value) if math.isfinite(value) else None for value in column]


def _short(value: float) -> float | int:
    rounded = float(f"{value:.{DIGITS}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
