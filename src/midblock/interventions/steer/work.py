"""The work of steering: directions, the tuned model's answers, their NLL with every α and at every block, and texts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from midblock.base import LayerPlan, MidblockError, write_json
from midblock.checkpoints import Pair
from midblock.data import make_batches
from midblock.interventions.answering import Answers
from midblock.interventions.steer.answers import Writing
from midblock.interventions.steer.directions import Directions, estimate_directions
from midblock.interventions.steer.effect import Scorer
from midblock.interventions.steer.kept import KeptValues
from midblock.interventions.steer.rows import rows_of
from midblock.interventions.steer.scan import Scan
from midblock.interventions.steer.settings import SteerSettings
from midblock.interventions.steer.source import FILE
from midblock.interventions.steer.summary import summarize_steering
from midblock.runs.run import Bench, Outcome


@dataclass(frozen=True)
class Steering:
    """Everything that is read; `run` does the rest.

    Attributes:
        heldout: the prompts that are judged.
        plan: the blocks to steer.
        known: directions found earlier, or the samples to estimate them on.
    """

    pair: Pair
    heldout: Answers
    settings: SteerSettings
    plan: LayerPlan
    known: Directions | Answers

    def run(self, bench: Bench) -> Outcome:
        """Measure.

        Raises:
            MidblockError: there is nothing to add, or nothing to judge it by.
        """
        settings, tuned = self.settings, self.pair.tuned[0]
        kept = KeptValues(bench.partial, bench.owner, clusters=self.heldout.clusters)
        directions = self._directions(bench, kept)
        vectors, blocks = directions.vectors(), self.plan.blocks
        if not any(bool(vectors[block].any()) for block in blocks):
            raise MidblockError(f"base and {tuned.name} have the same states at blocks {self.plan}: nothing to add")
        writing = Writing(self.pair, self.heldout, settings, kept, bench.progress)
        answers = writing.answers()
        bench.notes += writing.notes(answers)
        batches = make_batches(answers.prompts, batch_tokens=settings.batch_tokens)
        base = self.pair.base.model
        scorer = Scorer(base, batches, vectors, settings.adding, kept, settings.seed, bench.progress)
        plain, target = scorer.nll("nll-base"), scorer.nll("nll-tuned", tuned.model)
        effects = scorer.effects(plain, blocks, settings.alpha, settings.random_draws)
        scan = Scan(scorer.anatomy, batches, vectors, settings).run(plain, bench) if settings.scan else []
        texts = writing.texts(vectors, blocks)
        bench.notes += kept.notes
        return Outcome(
            list(rows_of(tuned.name, directions, scan, self.heldout.reference)),
            summarize_steering(tuned.name, self.plan, directions, settings, plain, target, effects),
            files={"texts.json": lambda path: write_json(path, texts), FILE: directions.write},
        )

    def _directions(self, bench: Bench, kept: KeptValues) -> Directions:
        """Those found earlier, in another run or in this one before it was stopped; else estimated now."""
        if isinstance(self.known, Directions):
            return self.known
        estimate = partial(
            estimate_directions,
            self.pair.base,
            self.pair.tuned[0],
            self.known.batches,
            region=self.settings.region,
            kind=self.settings.kind,
            components=self.settings.components,
            seed=self.settings.seed,
            progress=bench.progress,
        )
        return kept.directions(estimate)
