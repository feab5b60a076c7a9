"""`steer`: push the base towards a tuned model by adding a direction to its residual stream, and see how far it gets.

Gap closed: (NLL base − NLL steered) / (NLL base − NLL tuned), of the tuned model's own answers. Cost: a pass of both
models to estimate; over the held-out answers 1 + random draws passes an α, and half as many a block with the scan.
Source: mean-shift and PCA directions at chosen blocks while generating. Ours: held-out prompts, random directions as a
control, and the share of the NLL's gap that is closed. Described in docs/causes/steer.md.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from midblock.base import LayerPlan, LayerTable, MidblockError, Progress, divide
from midblock.checkpoints import LoadSettings, Pair, load_pair
from midblock.data import ExampleSet
from midblock.interventions.answering import Answers, read_answers
from midblock.interventions.readable import TRIES, load_readable, notes_for, ready_to_measure
from midblock.interventions.steer.directions import Directions
from midblock.interventions.steer.samples import Samples
from midblock.interventions.steer.settings import SteerSettings
from midblock.interventions.steer.source import DirectionSource
from midblock.interventions.steer.work import Steering
from midblock.runs.lending import lent
from midblock.runs.reading import DEFAULT_DATA
from midblock.runs.request import Draft, draft_of
from midblock.runs.run import Ready, carry_out
from midblock.runs.where import Where

DIRECTION_DATA = "the samples of the directions"


def steer(base: str, source: str | Path, data: str | ExampleSet = DEFAULT_DATA, **options: Any) -> LayerTable:
    """Add α·direction to the base's residual stream at chosen blocks, while it generates and while it is scored.

    A block's direction is what the tuned model's states there have beyond the base's, on average. It is judged on
    other prompts: how likely the steered base finds the tuned model's own answers, in nats per token.

    Args:
        base: the model that is steered, a model reference.
        source: where to: a tuned model, or the run folder of `midblock analyze`, whose first tuned model it is, or of
            an earlier `midblock steer`, whose directions are used again.
        data: a dataset reference, or examples already loaded; two samples of it that share none are used.
        **options: fields of `SteerSettings` (`blocks`, `alpha`, `kind`, …), of `LoadSettings`, and of `Where`:
            `output_dir` (which gets `texts.json` and `directions.safetensors`), `resume`, `overwrite`, …

    Returns:
        `steer_*` of every block.

    Raises:
        MidblockError: the models do not differ at the chosen blocks, the tuned model answers nothing, or anything else
            the user can mend; what was found until then stays for `resume`.

    Example:
        >>> table = steer(base, tuned, data, num_samples=6, num_directions_samples=8, max_new_tokens=4)
        >>> table.curve("steer_nll_change", "sft").layer.tolist()
        [0, 1, 2]
    """
    where, loading, settings = divide(options, Where, LoadSettings, SteerSettings)
    found = DirectionSource.of(str(source))
    pair = load_pair(base, found.tuned, **asdict(loading))
    plan = LayerPlan.parse(settings.blocks, pair.blocks)
    earlier = found.directions(pair)
    notes = found.notes(pair.base.reference)
    if earlier is not None:
        notes += _notes_of_reuse(found, earlier, data, settings)
        settings = replace(settings, kind=earlier.kind, components=earlier.components)
    samples = Samples.of(data, settings, needed=earlier is None)
    draft = _draft(pair, samples, settings, found)

    def prepare(progress: Progress) -> Ready:
        heldout = read_answers(pair, samples.judged, settings)
        load_readable(pair, heldout, progress)
        # The held-out prompts are read whole, without their own answers: nothing of them was cut.
        told = [*notes_for(pair, samples.judged, heldout, heldout.facts.get("left_out", ())), *notes]
        known = _read_samples(pair, samples, settings) if earlier is None else earlier
        inputs = {}
        if isinstance(known, Answers):
            told += [f"To estimate the directions: {note}" for note in known.notes()]
            inputs[DIRECTION_DATA] = known.examples.content_hash
        work = Steering(pair, heldout, settings, plan, known).run
        return ready_to_measure(draft, pair, heldout, work, seed=settings.seed, notes=told, inputs=inputs)

    with lent(pair, tries=TRIES):
        return carry_out(draft, prepare, where).table


def _draft(pair: Pair, samples: Samples, settings: SteerSettings, source: DirectionSource) -> Draft:
    """The request; it names the source, not what it led to, so that its config.yaml can be run again."""
    return draft_of(
        "steer",
        pair,
        samples.judged,
        settings,
        pair.base.loading,
        models={"base": pair.base.reference, "from": source.reference},
        sources=source.places,
        inputs=source.content(),
    )


def _notes_of_reuse(
    source: DirectionSource, ready: Directions, data: str | ExampleSet, settings: SteerSettings
) -> list[str]:
    notes = [f"The directions are those of {source.reference} ({ready.kind}, {ready.n} samples)."]
    before = source.settings or {}
    same = isinstance(data, str) and data == before.get("data")
    same = same and all(getattr(settings, name) == before.get(name) for name in ("split", "seed"))
    if not (same and settings.num_samples <= before.get("num_samples", 0)):
        notes.append("They may have been estimated on some of the prompts judged here: other data, or another draw.")
    return notes


def _read_samples(pair: Pair, samples: Samples, settings: SteerSettings) -> Answers:
    """The samples of the directions as tokens."""
    found = read_answers(pair, samples.estimated_on, settings)
    fewest = min(len(found.examples), int(pair.base.config.hidden_size))
    if settings.kind == "pca" and settings.components > fewest:
        what = f"{settings.components} principal directions cannot be had from {len(found.examples)} samples"
        raise MidblockError(what, hint=f"--components {fewest}")
    return found
