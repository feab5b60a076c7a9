"""`carve_weights`: a base, a model tuned from it and data in; a sparse carrier of its change out.

The training is that of `tune`, by the method `carve`. The verb `carve` is built on it. Described in docs/carve.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midblock.base import LayerRow, LayerTable
from midblock.checkpoints import LoadSettings
from midblock.data import ExampleSet
from midblock.runs.where import Where
from midblock.tuning.settings import CourseSettings

Announce = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Carved:
    """A finished carving.

    Attributes:
        folder: the run folder.
        carrier: the carrier inside it; a model reference like any other.
        table: `mask_density` by layer and group, gradient norms by layer, and what `examine` added.
        log: the lines of `log.jsonl`, with λ, ε, the loss's mean and the share of masks that are on.
        summary: what `summary.json` holds.
    """

    folder: Path
    carrier: Path
    table: LayerTable
    log: tuple[Mapping[str, Any], ...]
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class Examined:
    """What a look at the finished carrier adds to the run.

    Attributes:
        rows: for the LayerTable.
        summary: fields of `summary.json`; a `headline` here replaces that of the training.
        notes: what a reader must know.
    """

    rows: Sequence[LayerRow] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


def carve_weights(
    base: str, tuned: str, data: str | ExampleSet, *, announce: Announce | None = None, **options: Any
) -> Carved:
    """Press a model's change into few channels, under a budget for its loss.

    Args:
        base: a model reference.
        tuned: one of a model tuned from it.
        data: a dataset reference, or examples already loaded: the behaviour that the change is to be kept for.
        announce: given the plan (as in `plan.json`) before training starts.
        **options: fields of `CarveSettings`, `LoadSettings` and `Where`; `output_dir` must be among them.

    Raises:
        MidblockError: anything the user can mend; checkpoints written until then stay for `resume`.

    Example:
        >>> from midblock.tuning import carve_weights
        >>> carved = carve_weights("start", "sft", "sums.jsonl", max_steps=4, mask_warmup_steps=2, output_dir="carved")
        >>> carved.carrier.name
        'carrier'
    """
    raise NotImplementedError


def carve_course(
    base: str,
    data: str | ExampleSet,
    settings: CourseSettings,
    loading: LoadSettings,
    where: Where,
    *,
    announce: Announce | None = None,
    examine: Callable[[Path], Examined] = lambda carrier: Examined(),
) -> Carved:
    """As `carve_weights`, for a verb with options of its own.

    Args:
        settings: a `CarveSettings`, or a subclass that declares more options; `settings.tuned` names the tuned model.
        examine: given the carrier's folder once it is written, inside the same run and in its main process; a run that
            was killed in it goes on with it.
    """
    raise NotImplementedError
