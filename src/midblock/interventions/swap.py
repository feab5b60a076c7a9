"""`swap`: blocks of the tuned model in the base, and the reverse: where in depth does tuning matter?

Modules are exchanged by reference, and what lies below a swapped segment is computed once. Source: P1's layer-wise
swapping, which copies the last two blocks of each of five segments.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from midblock.base import LayerTable, MidblockError, Progress, from_options
from midblock.checkpoints import Anatomy, Pair, Variant, device_of
from midblock.data import Batch, ExampleSet
from midblock.evaluation import Targets, check_answerable, check_finite, exact_match, score
from midblock.interventions.cells import EMBEDDING, Cell, run_cells
from midblock.interventions.exchange import check_blocks_alike, exchanged
from midblock.interventions.experiment import Bench, Experiment, Outcome, Step, Work, run_steps
from midblock.interventions.reading import DEFAULT_DATA
from midblock.interventions.swap_settings import SwapSettings
from midblock.interventions.swap_table import Place, SwapTable
from midblock.trace import BlockCalls, RowStore, check_rerun, record_calls


def swap(
    pair: Pair,
    data: str | ExampleSet = DEFAULT_DATA,
    *,
    output_dir: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    command: str | None = None,
    **options: Any,
) -> LayerTable:
    """Put blocks of each model into the other, segment by segment, and measure what that does to the answers.

    Args:
        pair: a base and one tuned model, from `load_pair` or `Pair.of_models`.
        data: a dataset reference, or examples already loaded.
        output_dir: a run folder to write; None writes nothing.
        resume, overwrite: what to do with a folder that is there.
        progress: told how far it got.
        command: how it was called, recorded.
        **options: fields of `SwapSettings`.

    Returns:
        `swap_*` by host (`model`), last swapped block (`layer`; the first for `swap_top_*`) and head (`module`);
        `.reference` rows at layer L are the unchanged models.

    Raises:
        MidblockError: not one tuned model, blocks that differ in shape (the tensor is named), or anything else the user
            can mend.
    """
    settings = from_options(SwapSettings, options)
    if len(pair.tuned) != 1:
        raise MidblockError(f"a swap takes one tuned model, not {len(pair.tuned)}", hint="swap them one by one")
    settings.cells(pair.blocks)
    references = {"base": pair.base.reference, "tuned": pair.tuned[0].reference}
    experiment = Experiment("swap", pair, data, settings, progress, command, references)
    prepare = partial(_Swaps.prepare, settings=settings)
    return experiment.run(prepare, output_dir=output_dir, resume=resume, overwrite=overwrite)


@dataclass
class _Swaps:
    """All batches through all cells; rows in `store`, saved piece by piece."""

    bench: Bench
    settings: SwapSettings
    store: RowStore = field(default_factory=RowStore)
    checked: bool = False

    @cached_property
    def variants(self) -> tuple[Variant, Variant]:
        return self.bench.pair.base, self.bench.pair.tuned[0]

    @cached_property
    def anatomies(self) -> tuple[Anatomy, Anatomy]:
        base, tuned = (Anatomy.of(variant.model) for variant in self.variants)
        check_blocks_alike(base, tuned)
        return base, tuned

    @cached_property
    def hosts(self) -> list[int]:
        """Which of the two models something is put into."""
        return {"both": [0, 1], "into_base": [0], "into_tuned": [1]}[self.settings.direction]

    @cached_property
    def heads(self) -> list[int]:
        return {"both": [0, 1], "base": [0], "tuned": [1]}[self.settings.heads]

    @cached_property
    def cells(self) -> list[Cell]:
        """Those of the settings; the embedding too, where tuning changed it."""
        found = self.settings.cells(self.bench.pair.blocks)
        alone = self.settings.cumulative == "none"
        return [Cell(EMBEDDING, EMBEDDING), *found] if alone and _embedding_differs(*self.anatomies) else found

    @cached_property
    def places(self) -> list[Place]:
        """Every cell of the table, and the unchanged models as references."""
        bodies = [(body, None) for body in (0, 1)] + [(host, cell) for host in self.hosts for cell in self.cells]
        return [Place(body, cell, head) for body, cell in bodies for head in self.heads]

    @classmethod
    def prepare(cls, bench: Bench, settings: SwapSettings) -> Work:
        """Lay out the steps.

        Raises:
            MidblockError: what the user can mend.
        """
        found = cls(bench, settings)
        return partial(found.run, [*found._readings(), *found._answers()])

    def run(self, steps: list[tuple[float, Step]]) -> Outcome:
        """Do the steps, each given with its cost, and make the table of the rows."""
        run_steps(steps, self.store, self.bench, "swapping")
        base, tuned = self.variants
        names = (base.name, tuned.name)
        table = SwapTable.of(self.store, names, self.bench.pair.blocks, self.places, self.settings)
        return Outcome(table.rows(self.bench.answers.reference), table.summary(), {"cells.csv": table.write_cells})

    def _readings(self) -> list[tuple[float, Step]]:
        answers = self.bench.answers
        each = zip(answers.batches, answers.targets, strict=True)
        cells = len(self.cells) * len(self.hosts)
        return [(batch.input_ids.numel() * cells, partial(self._read, batch, targets)) for batch, targets in each]

    def _read(self, batch: Batch, targets: Targets) -> None:
        """One batch: both models as they are, then every cell from the states that enter it."""
        ran = [self._record(which, batch) for which in (0, 1)]
        self.checked = True
        for body in (0, 1):
            self._score(body, None, ran[body].entering[self.bench.pair.blocks], targets)
        for host in self.hosts:
            donor = 1 - host
            cells = run_cells(self.anatomies[host], self.anatomies[donor], ran[host], ran[donor], self.cells)
            for cell, states in cells:
                self._score(host, cell, states, targets)

    def _record(self, which: int, batch: Batch) -> BlockCalls:
        anatomy, total = self.anatomies[which], self.bench.pair.blocks
        keep = {max(cell.first, 0) for cell in self.cells} | {total} | (set() if self.checked else {total - 1})
        with record_calls(anatomy, keep) as ran, torch.inference_mode():
            output = anatomy.backbone(input_ids=batch.input_ids.to(device_of(anatomy.embedding)), use_cache=False)
        if not self.checked:
            check_rerun(anatomy, ran, output[0], self.variants[which].name)
        return ran

    def _score(self, body: int, cell: Cell | None, states: Float[Tensor, "B T D"], targets: Targets) -> None:
        picked = targets.pick(states)
        for head in self.heads:
            anatomy = self.anatomies[head]
            with torch.inference_mode():
                normed = anatomy.final_norm(picked.to(device_of(anatomy.final_norm)))
                scores = score(anatomy, normed, targets.tokens, self.bench.pair.vocabulary)
            check_finite(scores, targets, self.variants[body].name, self.bench.pair.blocks - 1)
            self.store.update(Place(body, cell, head).key("tokens"), targets.index, targets.sums(scores))

    def _answers(self) -> list[tuple[float, Step]]:
        if not self.settings.generate:
            return []
        examples = self.bench.answers.first(self.settings.generate_samples)
        for variant in self.bench.pair:
            check_answerable(variant.model, self.bench.answers.tokenizer, examples, **self.settings.answering)
        for place in self.places:
            with self._exchanged(place):  # a resized vocabulary's parts cannot be: said before anything is measured
                pass
        cost = len(examples.examples) * self.settings.max_new_tokens
        return [(cost, partial(self._answer, place, examples)) for place in self.places]

    def _answer(self, place: Place, examples: ExampleSet) -> None:
        host = self.variants[place.body].model
        with self._exchanged(place):
            found = exact_match(host, self.bench.answers.tokenizer, examples, **self.settings.answering)
        self.store.update(place.key("answer"), torch.arange(found.n), found.correct.double()[:, None])

    def _exchanged(self, place: Place) -> AbstractContextManager[int]:
        host, donor = self.variants[place.body].model, self.variants[1 - place.body].model
        blocks = place.cell.blocks if place.cell else range(0)
        embedding = place.cell is not None and place.cell.last == EMBEDDING
        return exchanged(host, donor, blocks, head=place.head != place.body, embedding=embedding)


def _embedding_differs(base: Anatomy, tuned: Anatomy) -> bool:
    """Whether anything that stands before block 0 has other weights; a resized vocabulary counts by its shared rows."""
    theirs = dict(tuned.backbone.named_parameters())
    inside = {id(value) for part in (base.blocks, base.final_norm) for value in part.parameters()}
    for name, value in base.backbone.named_parameters():
        if id(value) not in inside:
            other, rows = theirs[name], min(len(value), len(theirs[name]))
            if not torch.equal(value[:rows].cpu(), other[:rows].cpu()):
                return True
    return False
