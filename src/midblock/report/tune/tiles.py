"""The key figures of a tuning run: what was trained, what it reached and cost, and that the rest was left alone."""

from __future__ import annotations

import math
from html import escape

import numpy as np

from midblock.report.page.amounts import SPACE, count, duration, share, size
from midblock.report.page.bars import Bar, bar_list
from midblock.report.page.facts import number
from midblock.report.read.tuning import TuneRun
from midblock.runs.lenient import as_number, mapping


def tune_tiles(run: TuneRun) -> str:
    """HTML of the tiles that this run's files allow."""
    found = [_trained(run), _ends(run, "loss", "Loss"), _nll(run), _objective(run), _cost(run), _untouched(run)]
    several = " four" if sum(map(bool, found)) == 4 else ""
    return f'<div class="tiles{several}">{"".join(found)}</div>' if any(found) else ""


def estimated(run: TuneRun) -> dict[str, float]:
    """Bytes of device memory that the plan expected, by purpose."""
    parts = {key: as_number(value) for key, value in mapping(run.plan, "memory").items() if not key.endswith("_disk")}
    return {key: value for key, value in parts.items() if math.isfinite(value)}


def peak(run: TuneRun) -> float:
    """Bytes of the measured peak, NaN where it is not known."""
    return as_number(run.summary.get("peak_memory_mb")) * 2**20


def _tile(label: str, strong: str, aside: str = "", below: str = "", note: str = "", look: str = "") -> str:
    small = f" <small>{escape(aside)}</small>" if aside else ""
    line = f"<ul><li><span><strong{look}>{escape(strong)}</strong>{small}</span></li></ul>"
    return f'<div class="tile"><h3>{escape(label)}</h3>{line}{below}<p>{escape(note)}</p></div>'


def _trained(run: TuneRun) -> str:
    trained, total = run.plan.get("trained_parameters"), run.plan.get("total_parameters")
    if not math.isfinite(as_number(trained)):
        return ""
    part = share(trained, total)
    aside = f"{part} of {count(total)}" if part else ""
    parts = {key: as_number(value) for key, value in mapping(run.plan, "by_part").items() if as_number(value) > 0}
    bars = bar_list([Bar(key.replace("_", " "), value, count(value)) for key, value in parts.items()])
    note = f"all in {next(iter(parts))}" if len(parts) == 1 else ""
    return _tile("Trained parameters", count(trained), aside, bars if len(parts) > 1 else "", note)


def _ends(run: TuneRun, key: str, label: str) -> str:
    """First and last value: the summary's, else the log's."""
    ends = mapping(run.summary, key)
    first, last = as_number(ends.get("first")), as_number(ends.get("last"))
    if not (math.isfinite(first) and math.isfinite(last)):
        known = run.log.column(key)
        known = known[np.isfinite(known)]
        if not len(known):
            return ""
        first, last = float(known[0]), float(known[-1])
    return _tile(
        label,
        f"{number(first)} → {number(last)}",
        note="mean of the first → of the last tenth of the steps, nats per token",
    )


def _nll(run: TuneRun) -> str:
    plain = run.plan.get("loss", "nll") == "nll" and not run.log.has("penalty")
    return "" if plain else _ends(run, "nll", "Plain NLL")


def _objective(run: TuneRun) -> str:
    """What was minimised, where it is more than the plain NLL."""
    loss, anchor = str(run.plan.get("loss") or "nll"), mapping(run.plan, "anchor")
    if not anchor:
        return _tile("Objective", loss) if loss != "nll" else ""
    words = {"k": "k = {}", "lambda": "λ = {}", "scope": "scope {}", "weights": "{} weights"}
    note = " · ".join(said.format(anchor[key]) for key, said in words.items() if anchor.get(key) is not None)
    whole = anchor.get("full_rank")
    if isinstance(whole, list) and whole:
        note += f". On {len(whole)} of them k reaches the full rank: there the anchor is a plain L2 one."
    return _tile("Objective", f"{loss} + anchor", note=note)


def _cost(run: TuneRun) -> str:
    phases = [phase for phase in mapping(run.record, "phases").values() if isinstance(phase, dict)]
    seconds = float(np.nansum([as_number(phase.get("seconds")) for phase in phases]))
    speed = as_number(run.summary.get("tokens_per_second"))
    logged = run.log.speed[np.isfinite(run.log.speed)]
    if not math.isfinite(speed) and len(logged):
        speed = float(np.median(logged))
    memory, expected = peak(run), sum(estimated(run).values())
    if not seconds and not math.isfinite(speed):
        return ""
    aside = f"{count(round(speed))} tokens/s" if math.isfinite(speed) else ""
    words = [f"peak {size(memory)}"] if math.isfinite(memory) else []
    words += [f"estimated {size(expected)}"] if expected else []
    note = f"memory: {', '.join(words)}" if words else ""
    return _tile("Time", duration(seconds) if seconds else "–", aside, note=note)


def _untouched(run: TuneRun) -> str:
    found = mapping(run.summary, "untouched")
    checked, changed = as_number(found.get("checked")), as_number(found.get("changed"))
    if not (math.isfinite(checked) and math.isfinite(changed)):
        return ""
    note = "tensors that were not to be trained, fingerprinted before and after"
    if changed:
        strong = f"⚠{SPACE}{changed:g} of {checked:g} changed"
        return _tile("Frozen tensors", strong, note=note, look=' class="bad"')
    return _tile("Frozen tensors", f"✓{SPACE}{checked:g} unchanged", note=note, look=' class="good"')
