"""`swap`: blocks of the tuned model in the base, and the reverse: where in depth does tuning matter?

Modules are exchanged by reference, and what lies below a swapped segment is computed once. Source: P1's layer-wise
swapping, which copies the last two blocks of each of five segments. Described in docs/causes/swap.md.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from midblock.base import LayerTable, MidblockError, Progress, divide
from midblock.checkpoints import Pair
from midblock.data import ExampleSet
from midblock.interventions.answering import read_answers
from midblock.interventions.readable import TRIES, load_readable, notes_for, ready_to_measure
from midblock.interventions.swap.settings import SwapSettings
from midblock.interventions.swap.work import Swapping
from midblock.runs.lending import lent
from midblock.runs.reading import DEFAULT_DATA
from midblock.runs.request import draft_of
from midblock.runs.run import Ready, carry_out
from midblock.runs.walking import engine_for
from midblock.runs.where import Where
from midblock.trace.engine import engine_of


def swap(pair: Pair, data: str | ExampleSet = DEFAULT_DATA, **options: Any) -> LayerTable:
    """Put blocks of each model into the other, segment by segment, and measure what that does to the answers.

    Args:
        pair: a base and one tuned model, from `load_pair` or `Pair.of_models`.
        data: a dataset reference, or examples already loaded.
        **options: fields of `SwapSettings`, and of `Where`: `output_dir`, `resume`, `overwrite`, …

    Returns:
        `swap_*` by host (`model`), last swapped block (`layer`; the first for `swap_top_*`) and head (`module`);
        `.reference` rows at layer L are the unchanged models.

    Raises:
        MidblockError: not one tuned model, blocks that differ in shape (the tensor is named), or anything else the user
            can mend.

    Example:
        >>> table = swap(load_pair(base, tuned), data, segments="3", num_samples=12, direction="into_base")
        >>> table.curve("swap_nll_change", "base", module="base_head").layer.tolist()
        [-1, 0, 1, 2]
    """
    where, settings = divide(options, Where, SwapSettings)
    if len(pair.tuned) != 1:
        hint = "swap them one by one" if pair.tuned else "midblock swap BASE TUNED"
        raise MidblockError(f"a swap takes one tuned model, not {len(pair.tuned)}", hint=hint)
    settings.cells(pair.blocks)
    models = {"base": pair.base.reference, "tuned": pair.tuned[0].reference}
    draft = draft_of("swap", pair, data, settings, pair.base.loading, models=models)

    def prepare(progress: Progress) -> Ready:
        answers = read_answers(pair, data, settings)
        engine = engine_for(pair, tokens=settings.batch_tokens, together=True)
        load_readable(pair, answers, progress)
        swapping = Swapping(pair, answers, settings, engine.limit)
        work = partial(swapping.run, list(swapping.steps()))
        notes = [*engine.notes, *notes_for(pair, data, answers, answers.notes())]
        return ready_to_measure(draft, pair, answers, work, seed=settings.seed, notes=notes, facts=engine.facts)

    with lent(pair, tries=TRIES), engine_of(pair):
        return carry_out(draft, prepare, where, share=True).table
