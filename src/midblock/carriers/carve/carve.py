"""`carve`: a base, a model tuned from it and a behaviour in; a carrier, and whether it is necessary and sufficient out.

Training is LCDD's (`tuning`); behind it the necessity table is always made. Cost: the training, then generating for
every contender. Described in docs/carve.md; source: P3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midblock.base import LayerTable, Silent, divide
from midblock.carriers.carve.examine import Examination
from midblock.carriers.carve.settings import NecessitySettings
from midblock.carriers.carve.table import necessity_frame, read_necessity
from midblock.carriers.carve.taught import Taught
from midblock.checkpoints import LoadSettings, quiet_transformers
from midblock.data import ExampleSet
from midblock.data.derived import DEFAULT_PROMPTS
from midblock.runs.finished import read_finished
from midblock.runs.processes import main_process
from midblock.runs.where import Where
from midblock.tuning.loop.carve_weights import carve_course

if TYPE_CHECKING:
    import pandas as pd

Announce = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, eq=False)
class Carving:
    """A carrier, and what it does.

    Attributes:
        folder: the run folder.
        carrier: the carrier's folder inside it; a model reference like any other.
        table: density of the masks by layer and group, and gradient norms by layer.
        necessity: base, tuned model, and every carrier alone and taken out, by measure.
        summary: what `summary.json` holds, `verdicts` among it.
    """

    folder: Path
    carrier: Path
    table: LayerTable
    necessity: pd.DataFrame
    summary: Mapping[str, Any]


def carve(
    base: str,
    tuned: str,
    data: str | ExampleSet = DEFAULT_PROMPTS,
    *,
    announce: Announce | None = None,
    **options: Any,
) -> Carving:
    """Press what tuning taught into few channels, and see whether it is there: alone, and taken out.

    Args:
        base: a model reference.
        tuned: one of a model that was tuned from it to show the behaviour.
        data: prompts, by any dataset reference, or one that names the behaviour (`style:DATA`); or examples already
            loaded, whose completions must show it.
        announce: given the plan (as in `plan.json`) before training starts.
        **options: fields of `NecessitySettings`, `LoadSettings` and `Where`; `output_dir` must be among them.

    Returns:
        The carrier and what it does. On all processes but the main one tables and summary are empty.

    Raises:
        MidblockError: anything the user can mend; checkpoints written until then stay for `resume`.

    Example:
        >>> from midblock import carve
        >>> carving = carve(
        ...     "start", "sft", "builtin:everyday", behaviour="fixed_response", num_samples=8, max_steps=2,
        ...     mask_warmup_steps=1, test_samples=4, max_new_tokens=2, random_draws=1, rivals=False,
        ...     ability="none", output_dir="carved",
        ... )
        >>> carving.necessity.contender.unique()[:3].tolist()
        ['base', 'tuned', 'carrier alone']
    """
    where, loading, settings = divide({**options, "tuned": tuned}, Where, LoadSettings, NecessitySettings)
    folder = where.needed("carve")
    taught = Taught.of(data, settings.behaviour)
    settings = replace(settings, behaviour=taught.behaviour)
    examination = Examination(base, taught, settings, loading, where.progress or Silent())
    with quiet_transformers():
        examination.check()
        carved = carve_course(base, taught.data, settings, loading, where, announce=announce, examine=examination.run)
    if not main_process():  # which still asks what the carrier does
        return Carving(folder, carved.carrier, LayerTable.from_rows([]), necessity_frame([]), {})
    finished = read_finished(folder)
    return Carving(folder, carved.carrier, finished.table, read_necessity(folder), finished.summary)
