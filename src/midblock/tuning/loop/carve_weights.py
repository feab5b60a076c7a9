"""`carve_weights`: a base, a model tuned from it and data in; a sparse carrier of its change out.

The training is that of `tune`, by the method `carve`. The verb `carve` is built on it. Described in docs/carve.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from midblock.base import LayerRow, LayerTable, divide
from midblock.base.names import name_of
from midblock.checkpoints import LoadSettings, quiet_transformers
from midblock.checkpoints.carrier import Carrier
from midblock.data import ExampleSet
from midblock.runs.processes import main_process
from midblock.runs.request import Draft
from midblock.runs.where import Where
from midblock.tuning.loop.aim import Aim, Learned
from midblock.tuning.loop.card import model_card
from midblock.tuning.loop.carve_rows import density_rows, summarize_carving
from midblock.tuning.loop.carve_settings import DISTIL, CarveSettings
from midblock.tuning.loop.course import Course
from midblock.tuning.loop.lesson import train
from midblock.tuning.loop.log_file import LogFile
from midblock.tuning.loop.outputs import gradient_rows
from midblock.tuning.loop.summary import read_artifact
from midblock.tuning.place.methods import method_of

VERB = "carve"

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

    Returns:
        The carrier and how it was found. On all processes but the main one log and table are empty.

    Raises:
        MidblockError: anything the user can mend; checkpoints written until then stay for `resume`.

    Example:
        >>> from midblock.tuning import carve_weights
        >>> carved = carve_weights("start", "sft", "sums.jsonl", max_steps=4, mask_warmup_steps=2, output_dir="carved")
        >>> carved.carrier.name, len(carved.log)
        ('carrier', 4)
    """
    where, loading, settings = divide({**options, "tuned": tuned}, Where, LoadSettings, CarveSettings)
    return carve_course(base, data, settings, loading, where, announce=announce)


def carve_course(
    base: str,
    data: str | ExampleSet,
    settings: CarveSettings,
    loading: LoadSettings,
    where: Where,
    *,
    announce: Announce | None = None,
    examine: Callable[[Path], Examined] = lambda carrier: Examined(),
) -> Carved:
    """As `carve_weights`, for a verb with options of its own.

    Args:
        settings: or a subclass that declares more options; `settings.tuned` names the tuned model.
        examine: given the carrier's folder once it is written, inside the same run and in its main process; a run that
            was killed in it goes on with it.
    """
    folder = where.needed(VERB)
    with quiet_transformers():
        course = _course(base, data, settings, loading)
        target = folder / method_of(course.settings).folder
        aim = Aim(
            target=target,
            results=partial(_results, name=name_of(folder), target=target, examine=examine),
            card=partial(model_card, course.settings, course.checkpoint, command=where.command),
            announce=announce or (lambda planned: None),
        )
        done = train(course, aim, where)
        if done.outcome is None:
            found = read_artifact(folder, target, done.table)
            return Carved(folder, target, done.table, found.log, found.summary)
        lines = LogFile(folder / "log.jsonl").read() if main_process() else ()
        return Carved(folder, target, done.table, lines, done.outcome.summary)


def carve_draft(base: str, data: str | ExampleSet, settings: CarveSettings, loading: LoadSettings) -> Draft:
    """The request that `carve_course` would carry out with the same arguments, before data and weights are read.

    Raises:
        MidblockError: what `carve_course` would refuse before it reads them.
    """
    with quiet_transformers():
        return _course(base, data, settings, loading).draft()


def _course(base: str, data: str | ExampleSet, settings: CarveSettings, loading: LoadSettings) -> Course:
    if settings.masks_only == "kl":
        settings = replace(settings, loss=DISTIL, reference=settings.tuned)
    return Course.of(VERB, base, data, settings=settings, loop=settings, loading=loading)


def _results(
    learned: Learned, *, name: str, target: Path, examine: Callable[[Path], Examined]
) -> tuple[list[LayerRow], dict[str, Any]]:
    carrier = Carrier.open(target)
    examined = examine(target)
    learned.notes.extend(examined.notes)
    summary = summarize_carving(learned.lines, carrier.config.made, learned.compared, target.name)
    learned.notes.extend(summary.pop("notes"))
    gradients = gradient_rows(learned.lines, name, learned.blocks)
    rows = [*density_rows(carrier.masks, name, learned.blocks), *gradients, *learned.moved, *examined.rows]
    return rows, {**summary, **examined.summary}
