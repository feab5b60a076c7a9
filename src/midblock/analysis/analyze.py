"""`analyze`: a pair of models and a dataset in, a LayerTable out; the one function of this room that takes models.

Cost: each model reads each prompt once (the base the token-level ones twice, in its other precision), and both models'
weights are read once. What is measured, and how, is in `midblock.analysis.work`; every metric in docs/metrics.md, what
is written in docs/run_folder.md.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from midblock.analysis.controls import check_controllable
from midblock.analysis.measure import is_dispatched
from midblock.analysis.mixtures import EXPERTS, has_experts, mixtures_of
from midblock.analysis.own_blocks import own_change_notes
from midblock.analysis.prompts import Prompts, prepare_prompts, with_general
from midblock.analysis.samples import draw_samples
from midblock.analysis.settings import AnalysisSettings
from midblock.analysis.work import Analysis, kinds_of
from midblock.base import LayerPlan, LayerTable, MidblockError, Progress, divide
from midblock.checkpoints import Anatomy, Pair, Variant
from midblock.data import Batch, ExampleSet, local_places
from midblock.evaluation import CHECKED, check_lens
from midblock.runs.lending import lent
from midblock.runs.reading import DEFAULT_DATA
from midblock.runs.request import DATA, Draft, Request, draft_of
from midblock.runs.run import Ready, carry_out
from midblock.runs.walking import engine_for
from midblock.runs.where import Where
from midblock.trace import check_stream
from midblock.trace.engine import Engine, engine_of
from midblock.trace.outline import tried
from midblock.trace.routing import Mixtures

TRIES = "lower --batch-tokens, or try --dtype bfloat16, --device-map auto or --no-precision-floor"


def analyze(pair: Pair, data: str | ExampleSet = DEFAULT_DATA, **options: Any) -> LayerTable:
    """Measure, layer by layer, what tuning did.

    Args:
        pair: from `load_pair` or `Pair.of_models`.
        data: a dataset reference, or examples already loaded; unused with `weights_only=True`.
        **options: fields of `AnalysisSettings`, and of `Where`: `output_dir`, `resume`, `overwrite`, …

    Returns:
        The table: every metric of every model at every layer, with intervals, nulls and noise floors. With several
        `seeds` that is the first sample of prompts; the others are METRIC.seed1, …, the spread over all METRIC.seeds.

    Raises:
        MidblockError: anything the user can mend; what was measured until then stays for `resume`.

    Example:
        >>> table = analyze(load_pair(base, tuned), data, num_samples=12, metrics="cka,delta_rel")
        >>> table.curve("cka", "sft").layer.tolist()
        [-1, 0, 1, 2, 3]
    """
    where, settings = divide(options, Where, AnalysisSettings)
    if not pair.tuned:
        raise MidblockError("an analysis compares a base with models tuned from it, and there is none")
    plan = LayerPlan.parse(settings.layers, pair.blocks)
    read = None if settings.weights_only else data
    draft = analysis_draft(pair, read, settings)

    def prepare(progress: Progress) -> Ready:
        start = time.perf_counter()
        kinds = kinds_of(settings)
        engine = analysis_engine(pair, settings, kinds)
        samples = _read(pair, data, settings, kinds, progress) if kinds else ()
        notes = [*pair.notes(), *engine.notes, *_notes_of_request(pair, read, plan)]
        if settings.controls and kinds:
            check_controllable(pair)
        if "own" in kinds:
            refused, told = own_change_notes(pair, samples[0])
            kinds -= {"own", "reverse"} if refused else set()
            notes += told
        mixtures, told = _mixtures(pair, samples, kinds, progress)
        notes += told
        if "floor" in kinds and not pair.in_parts and is_dispatched(pair.base.model):
            kinds -= {"floor"}
            notes.append("No precision floor: the base is spread over several devices.")
        return Ready(
            request=_decided(draft, read, samples),
            work=Analysis(pair, settings, plan, kinds, samples, mixtures, engine.limit).run,
            facts={"seed": settings.seed, **_facts(samples), **engine.facts},
            notes=[*notes, *_notes_of_samples(data, samples)],
            seconds=time.perf_counter() - start if samples else None,
        )

    with lent(pair, tries=TRIES), engine_of(pair):
        return carry_out(draft, prepare, where, share=True).table


def _mixtures(
    pair: Pair, samples: Sequence[Prompts], kinds: frozenset[str], progress: Progress
) -> tuple[Mapping[str, Mixtures], list[str]]:
    """Experts and routers of all models, where they are wanted."""
    if not kinds & EXPERTS or not has_experts(pair):
        return {}, []
    return mixtures_of(pair, samples[0], progress.phase("finding experts", 1 + len(pair.tuned)))


def analysis_engine(pair: Pair, settings: AnalysisSettings, kinds: frozenset[str]) -> Engine:
    """How an analysis walks the models; where nothing is measured by passes, it walks none, and no cap applies."""
    return Engine() if not kinds else engine_for(pair, tokens=settings.batch_tokens, rounded="floor" in kinds)


def analysis_draft(pair: Pair, data: str | ExampleSet | None, settings: AnalysisSettings) -> Draft:
    """The request of an analysis, before the data is read; None where none is."""
    undecided = {"split"} if isinstance(data, str) and settings.split is None else ()
    sources = local_places(settings.general) if settings.general and data is not None else []
    return draft_of("analyze", pair, data, settings, pair.base.loading, undecided=undecided, sources=sources)


def _read(
    pair: Pair, data: str | ExampleSet, settings: AnalysisSettings, kinds: frozenset[str], progress: Progress
) -> tuple[Prompts, ...]:
    """Draw and tokenise the prompts, then load the models, and see that predictions can be read off them if need be."""
    drawn = draw_samples(data, settings)
    samples = tuple(prepare_prompts(pair, sample, settings, views="views" in kinds) for sample in drawn)
    samples = (with_general(pair, samples[0], settings), *samples[1:])
    advance = progress.phase("loading models", 1 + len(pair.tuned))
    for variant in pair:
        first = (*samples[0].deep, *samples[0].pooled)[0].start(CHECKED)
        with tried(variant, first.input_ids):
            variant.model.eval()
            _check_states(variant, first, kinds)
        advance(1)
    return samples


def _check_states(variant: Variant, first: Batch, kinds: frozenset[str]) -> None:
    """See on a few tokens that states are the residual stream, and predictions read off them the model's own."""
    if kinds & {"lens", "heads"}:
        check_lens(variant.name, variant.model, first)
    else:
        check_stream(Anatomy.of(variant.model), first.input_ids, variant.name)


def _decided(draft: Draft, data: str | ExampleSet | None, samples: Sequence[Prompts]) -> Request:
    """The request, now that the data is read: which split that was, and what lay in it."""
    if not samples:
        return draft.decided({})
    hashes = _content_hashes(samples)
    general = samples[0].facts.get("general")
    inputs = {"general": general["content_hash"]} if general else {}
    split = {"split": samples[0].facts["split"] or None} if isinstance(data, str) else {}
    return draft.decided({DATA: hashes if len(hashes) > 1 else hashes[0], **inputs}, **split)


def _content_hashes(samples: Sequence[Prompts]) -> list[str]:
    return [prompts.facts["content_hash"] for prompts in samples]


def _facts(samples: Sequence[Prompts]) -> dict[str, Any]:
    """What `run.json` says about the data."""
    if not samples:
        return {}
    hashes = {"content_hashes": _content_hashes(samples)} if len(samples) > 1 else {}
    return {"data": {**samples[0].facts, **hashes}}


def _notes_of_request(pair: Pair, data: str | ExampleSet | None, plan: LayerPlan) -> list[str]:
    notes = [f"Only blocks {plan} were measured."] if len(plan.blocks) < pair.blocks else []
    if isinstance(data, ExampleSet):
        notes.append(f"The prompts were given in memory ({data.reference}): config.yaml names no data.")
    return notes


def _notes_of_samples(data: str | ExampleSet, samples: Sequence[Prompts]) -> list[str]:
    notes = list(samples[0].notes()) if samples else []
    for number, prompts in enumerate(samples[1:], start=1):
        notes += [f"Sample {number}: {note}" for note in prompts.notes()]
    if isinstance(data, ExampleSet) and len(samples) > 1:
        size = samples[0].facts["asked"]
        notes.append(f"The {len(data)} prompts in memory were parted into {len(samples)} samples of {size}.")
    return notes
