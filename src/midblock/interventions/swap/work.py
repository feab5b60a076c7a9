"""The pass of a swap: every batch through both models as they are, then through every mix of their blocks.

Cost: a block that is put in or stands above one is computed once for each mix; what lies below is the host's own pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from jaxtyping import Float
from torch import Tensor

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, Pair, Variant, device_of
from midblock.data import Batch, ExampleSet
from midblock.evaluation import CHECKED, Targets, check_answerable, check_finite, exact_match, score
from midblock.interventions.answer_rows import keep_matches
from midblock.interventions.answering import Answers
from midblock.interventions.swap.cells import EMBEDDING, Cell, run_cells
from midblock.interventions.swap.exchange import check_blocks_alike, exchanged
from midblock.interventions.swap.mix import Mix, MixScores
from midblock.interventions.swap.settings import SwapSettings
from midblock.interventions.swap.table import SwapTable
from midblock.runs.run import Bench, Outcome
from midblock.runs.steps import Step, run_steps
from midblock.trace import BlockCalls, RowStore, check_rerun, record_calls, same_states


@dataclass
class Swapping:
    """All batches through all mixes, then the mixes' own answers; rows in `store`, saved piece by piece."""

    pair: Pair
    answers: Answers
    settings: SwapSettings
    store: RowStore = field(default_factory=RowStore)
    checked: bool = False

    @cached_property
    def variants(self) -> tuple[Variant, Variant]:
        return self.pair.base, self.pair.tuned[0]

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
        found = self.settings.cells(self.pair.blocks)
        alone = self.settings.cumulative == "none"
        return [Cell(EMBEDDING, EMBEDDING), *found] if alone and _embedding_differs(*self.anatomies) else found

    @cached_property
    def mixes(self) -> list[Mix]:
        """Everything that is measured, the unchanged models first."""
        bodies = [(body, None) for body in (0, 1)] + [(host, cell) for host in self.hosts for cell in self.cells]
        return [Mix(body, cell, head) for body, cell in bodies for head in self.heads]

    def steps(self) -> Iterator[Step]:
        """What there is to do, each step with its cost.

        Raises:
            MidblockError: what the user can mend.
        """
        cells, keys = len(self.cells) * len(self.hosts), tuple(mix.key("tokens") for mix in self.mixes)
        for batch, targets in zip(self.answers.batches, self.answers.targets, strict=True):
            read = partial(self._read, batch, targets)
            yield Step(batch.input_ids.numel() * cells, read, keys, tuple(batch.index.tolist()))
        if self.settings.generate:
            yield from self._answers()

    def run(self, steps: list[Step], bench: Bench) -> Outcome:
        """Do the steps, and make the table of the rows."""
        advance = bench.progress.phase("swapping", sum(step.cost for step in steps))
        bench.notes += run_steps(steps, self.store, bench.partial, advance, owner=bench.owner)
        base, tuned = self.variants
        scores = {mix: MixScores.of(self.store, mix, self.settings.seed, self.answers.clusters) for mix in self.mixes}
        table = SwapTable((base.name, tuned.name), self.pair.blocks, scores, self.settings)
        return Outcome(table.rows(self.answers.reference), table.summary(), files={"cells.csv": table.write_cells})

    def _read(self, batch: Batch, targets: Targets) -> None:
        """One batch: both models as they are, then every cell from the states that enter it."""
        ran = [self._record(which, batch) for which in (0, 1)]
        if not self.checked:
            self._check_exchange(batch)
        self.checked = True
        for body in (0, 1):
            self._score(body, None, ran[body].entering[self.pair.blocks], targets)
        for host in self.hosts:
            donor = 1 - host
            cells = run_cells(self.anatomies[host], self.anatomies[donor], ran[host], ran[donor], self.cells)
            for cell, states in cells:
                self._score(host, cell, states, targets)

    def _record(self, which: int, batch: Batch) -> BlockCalls:
        anatomy, total = self.anatomies[which], self.pair.blocks
        keep = {max(cell.first, 0) for cell in self.cells} | {total} | (set() if self.checked else {total - 1})
        with record_calls(anatomy, keep) as ran, torch.inference_mode():
            output = anatomy.backbone(input_ids=batch.input_ids.to(device_of(anatomy.embedding)), use_cache=False)
        if not self.checked:
            check_rerun(anatomy, ran, output[0], self.variants[which].name)
        return ran

    def _check_exchange(self, batch: Batch) -> None:
        """Hold the lowest and the highest cells, run block by block, against whole models whose parts are exchanged.

        Raises:
            MidblockError: blocks pass something on beside the residual stream that is not known.
        """
        start = batch.start(CHECKED)
        ran = [self._record(which, start) for which in (0, 1)]
        resized = len({variant.config.vocab_size for variant in self.pair}) > 1
        cells = [cell for cell in self.cells if not (resized and cell.last == EMBEDDING)]
        for host in self.hosts:
            ours, theirs = self.anatomies[host], self.anatomies[1 - host]
            for cell, states in run_cells(ours, theirs, ran[host], ran[1 - host], {*cells[:2], *cells[-1:]}):
                with self._exchanged(Mix(host, cell, host)), torch.inference_mode():
                    ids = start.input_ids.to(device_of(ours.embedding))
                    whole = ours.backbone(input_ids=ids, use_cache=False)[0]
                    by_hand = ours.normed(states)
                if bool(torch.isfinite(whole).all()) and not same_states(by_hand, whole):
                    name, other = self.variants[host].name, self.variants[1 - host].name
                    what = f"{name} with blocks {cell} of {other}: run one by one they do not make what it makes itself"
                    raise MidblockError(
                        what, hint="its blocks pass on more than their states: they cannot be exchanged"
                    )

    def _score(self, body: int, cell: Cell | None, states: Float[Tensor, "B T D"], targets: Targets) -> None:
        picked = targets.pick(states)
        for head in self.heads:
            anatomy = self.anatomies[head]
            with torch.inference_mode():
                normed = anatomy.normed(picked)
                scores = score(anatomy, normed, targets.tokens, self.pair.vocabulary)
            check_finite(scores, targets, self.variants[body].name, self.pair.blocks - 1)
            self.store.update(Mix(body, cell, head).key("tokens"), targets.index, targets.sums(scores))

    def _answers(self) -> Iterator[Step]:
        examples = self.answers.first(self.settings.generate_samples)
        for variant in self.pair:
            check_answerable(variant.model, self.answers.tokenizer, examples, **self.settings.answering)
        for mix in self.mixes:
            with self._exchanged(mix):  # a resized vocabulary's parts cannot be: said before anything is measured
                pass
        cost = len(examples) * self.settings.max_new_tokens
        index = tuple(range(len(examples)))
        yield from (Step(cost, partial(self._answer, mix, examples), (mix.key("answer"),), index) for mix in self.mixes)

    def _answer(self, mix: Mix, examples: ExampleSet) -> None:
        host = self.variants[mix.body].model
        with self._exchanged(mix):
            found = exact_match(host, self.answers.tokenizer, examples, **self.settings.answering)
        keep_matches(self.store, mix.key("answer"), found)

    def _exchanged(self, mix: Mix) -> AbstractContextManager[int]:
        host, donor = self.variants[mix.body].model, self.variants[1 - mix.body].model
        blocks = mix.cell.blocks if mix.cell else range(0)
        embedding = mix.cell is not None and mix.cell.last == EMBEDDING
        return exchanged(host, donor, blocks, head=mix.head != mix.body, embedding=embedding)


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
