"""Measuring: every contender through every measure, step by step, so that a killed run goes on where it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from midblock.base import Progress
from midblock.base.seal import fingerprint
from midblock.carriers.carve.contenders import Contender, Trio
from midblock.carriers.carve.measures import Measure, Row
from midblock.evaluation.evaluate.asking import Within
from midblock.evaluation.evaluate.kept import KeptSteps
from midblock.evaluation.paired import Marks
from midblock.runs.stopping import STOPPING

Found = Mapping[tuple[str, str], Marks]  # by contender and measure


def measure_all(
    trio: Trio,
    contenders: Sequence[Contender],
    measures: Sequence[Measure],
    folder: Path | None,
    owner: Sequence[Any],
    progress: Progress,
) -> tuple[dict[tuple[str, str], Marks], list[str]]:
    """Do what is left to do.

    Args:
        folder: where steps are kept, None to keep none.
        owner: what tells this run's steps from another's.

    Returns:
        What was found, by contender and measure, and what a reader must know of steps that were damaged.

    Raises:
        MidblockError: a step that another run kept, or whatever a measure raises.
    """
    plan = [[measure.name, measure.about, len(measure.steps)] for measure in measures]
    kept = KeptSteps(folder, fingerprint(list(owner), plan, [contender.name for contender in contenders]))
    total = len(contenders) * sum(step.cost for measure in measures for step in measure.steps)
    advance = progress.phase("asking what the carrier does", total)
    found: dict[tuple[str, str], Marks] = {}
    with STOPPING.stoppable():
        for place, contender in enumerate(contenders):
            names = [f"{place:03d}-{m.name}-{n:04d}" for m in measures for n in range(len(m.steps))]
            rows: dict[str, Sequence[Row]] = {name: old for name in names if (old := kept.rows(name)) is not None}
            if len(rows) < len(names):
                rows = _stand(trio, contender, place, measures, rows, kept, advance)
            else:
                advance(total / len(contenders))
            for measure in measures:
                own = [rows[f"{place:03d}-{measure.name}-{n:04d}"] for n in range(len(measure.steps))]
                found[contender.name, measure.name] = measure.marks([row for part in own for row in part])
    return found, kept.notes


def _stand(
    trio: Trio,
    contender: Contender,
    place: int,
    measures: Sequence[Measure],
    earlier: Mapping[str, Sequence[Row]],
    kept: KeptSteps,
    advance: Any,
) -> dict[str, Sequence[Row]]:
    """The steps of one contender that are left, while it stands."""
    rows: dict[str, Sequence[Row]] = dict(earlier)
    with trio.standing(contender) as model:
        for measure in measures:
            for number, step in enumerate(measure.steps):
                name, within = f"{place:03d}-{measure.name}-{number:04d}", Within(advance, step.cost)
                if name not in rows:
                    rows[name] = step.do(contender.name, model, within)
                    kept.keep(name, list(rows[name]))  # type: ignore[arg-type]
                    if STOPPING.due():
                        STOPPING.stop()
                within.finish()
    return rows
