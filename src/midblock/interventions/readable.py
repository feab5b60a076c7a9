"""What probe, swap and steer do alike around their work: load models, see that they can be read, time and record it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from midblock.base import Progress
from midblock.checkpoints import Pair, quiet_transformers
from midblock.data import ExampleSet
from midblock.evaluation import CHECKED, check_lens
from midblock.interventions.answering import Answers
from midblock.runs.reading import few_note
from midblock.runs.request import DATA, Draft, models_of
from midblock.runs.run import Bench, Outcome, Ready
from midblock.trace.outline import tried

TRIES = "lower --batch-tokens, or try --dtype bfloat16 or --device-map auto"


def load_readable(pair: Pair, answers: Answers, progress: Progress) -> None:
    """Load the models in evaluation mode.

    Raises:
        MidblockError: a model whose predictions cannot be read off its states, or that cannot be loaded.
    """
    advance = progress.phase("loading models", 1 + len(pair.tuned))
    for variant in pair:
        with tried(variant, answers.batches[0].start(CHECKED).input_ids):
            variant.model.eval()
            check_lens(variant.name, variant.model, answers.batches[0])
        advance(1)


def notes_for(pair: Pair, data: str | ExampleSet, answers: Answers, left_out: Sequence[str]) -> list[str]:
    """What a reader of the results must know before anything is measured.

    Args:
        left_out: what the answers say of examples that were left out or cut.
    """
    different = {example.text for example in answers.examples}
    notes = [*pair.notes(), *left_out, *few_note(len(different), "examples")]
    if answers.clusters is not None:
        notes.append(answers.clusters.note("examples"))
    if isinstance(data, ExampleSet):
        notes.append(f"The examples were given in memory ({data.reference}): config.yaml names no data.")
    return notes


def ready_to_measure(
    draft: Draft,
    pair: Pair,
    answers: Answers,
    work: Callable[[Bench], Outcome],
    *,
    seed: int,
    notes: Sequence[str],
    inputs: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Ready:
    """The prepared run: `work` as one timed phase, with the models recorded behind it.

    Args:
        inputs: what was read besides the answers, as of `Request`.
        facts: what `run.json` says besides.
    """

    def measure(bench: Bench) -> Outcome:
        with bench.phase("measure"), quiet_transformers():
            outcome = work(bench)
        return replace(outcome, record={"models": models_of(pair)}) if bench.run else outcome  # hashes whole files

    request = draft.decided({DATA: answers.facts["content_hash"], **(inputs or {})})
    said = {"seed": seed, "data": dict(answers.facts), **(facts or {})}
    return Ready(request=request, work=measure, facts=said, notes=notes)
