"""The third door: what tuning forgot is given back without training, by blending base and tuned model block by block.

Alphas are chosen on two validation sets, the task's and the general one, and what was chosen is tested on two others
that share no text with them. Nothing is written: one copy of the base moves between the two models. Cost: about
S²·G/2 + 25 readings of the validation sets for S segments and G steps of α, and 5 of the test sets.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from midblock.base import Estimate, LayerPlan, MidblockError, Progress
from midblock.checkpoints import Anatomy, LoadSettings, Pair, load_pair
from midblock.data import Batch, ExampleSet, encode, make_batches
from midblock.evaluation import TokenMean, difference, mean_nll
from midblock.interventions.merge.alphas import Alphas
from midblock.interventions.merge.blended import Blended
from midblock.runs.reading import with_region
from midblock.runs.request import check_all
from midblock.studies.recommend.drawn import check_apart, disjoint_parts
from midblock.studies.recommend.front import BY_DEPTH, LINEAR, UNIFORM, Front, Point
from midblock.studies.recommend.ranks import with_ranks
from midblock.studies.recommend.recommendation import Recommendation, fallback
from midblock.studies.recommend.settings import RecommendSettings

LOWER = "lower --num-samples or --test-samples"
HALF = 0.5  # α from which a block counts as tuned
FAMILIES = (BY_DEPTH, LINEAR, UNIFORM)


@dataclass(frozen=True)
class Sample:
    """Examples as tokens: of which −ln p is taken.

    Attributes:
        examples: as they were drawn.
        batches: their tokens.
        region: whose −ln p counts: the answers', or all tokens' where examples have none.
    """

    examples: ExampleSet
    batches: tuple[Batch, ...]
    region: str

    @classmethod
    def of(cls, examples: ExampleSet, tokenizer: Any, settings: RecommendSettings) -> Sample:
        """Tokenise examples.

        Raises:
            MidblockError: too few of them can be read.
        """
        region = "answer" if all(example.answered for example in examples) else "all"
        tokens = encode(examples, tokenizer, max_length=settings.max_length, template=settings.template)
        tokens = with_region(tokens, region)
        if len(tokens.prompts) < 2:
            what = f"only {len(tokens.prompts)} of {len(examples)} examples of {examples.reference} can be measured"
            raise MidblockError(what, hint="see --max-length")
        return cls(examples, tuple(make_batches(tokens.prompts, batch_tokens=settings.batch_tokens)), region)


@dataclass(frozen=True)
class Repair:
    """A repair whose examples are drawn.

    Attributes:
        choosing, testing: the task's sample and the general one.
    """

    pair: Pair
    settings: RecommendSettings
    choosing: tuple[Sample, Sample]
    testing: tuple[Sample, Sample]

    @classmethod
    def plan(
        cls, models: Sequence[str], data: str, general: str, settings: RecommendSettings, loading: LoadSettings
    ) -> Repair:
        """Draw the examples.

        Raises:
            MidblockError: validation and test examples that overlap, too few examples, or models that do not fit.
        """
        pair = load_pair(*models, **asdict(loading))
        check_all("recommend", pair)
        task = _sets(data, settings.test, "the task's", settings)
        other = _sets(general, settings.general_test, "the general", settings)
        samples = [Sample.of(each, pair.tokenizer, settings) for each in (*task, *other)]
        return cls(pair, settings, (samples[0], samples[2]), (samples[1], samples[3]))

    def run(self, progress: Progress) -> Recommendation:
        """Choose alphas, test them, and recommend."""
        began, settings, total = time.perf_counter(), self.settings, self.pair.blocks
        blended = Blended.of(self.pair.base.model, self.pair.tuned[0].model)
        anatomy = Anatomy.of(blended.model)
        segments = min(settings.segments, total)
        advance = progress.phase("choosing alphas", 23 + segments * (segments + 1) * settings.grid / 2)

        def measure(alphas: tuple[float, ...], sets: tuple[Sample, Sample]) -> tuple[TokenMean, TokenMean]:
            model = blended.move(Alphas(alphas, alphas[0], alphas[-1], {}))
            task, other = (
                mean_nll(model, each.batches, region=each.region, seed=settings.seed, anatomy=anatomy) for each in sets
            )
            advance(1)
            return task, other

        front = Front(lambda alphas: measure(alphas, self.choosing), total)
        front.ends()
        front.uniform()
        front.linear()
        front.descend(settings.segments, settings.grid, settings.keep)
        chosen = {family: front.chosen(family, settings.keep) for family in FAMILIES}
        test = Tested(Front(lambda alphas: measure(alphas, self.testing), total), chosen, settings.seed)
        cost = {"seconds": round(time.perf_counter() - began, 3), "blends": len(front.known)}
        return self._answer(front, test, cost)

    def _answer(self, front: Front, test: Tested, cost: dict[str, float]) -> Recommendation:
        total, best = self.pair.blocks, test.best
        why_not = test.why_not
        kept = tuple(block for block, alpha in enumerate(best.alphas) if alpha >= HALF * max(best.alphas))
        plan = fallback(total) if why_not or not kept else LayerPlan(total, kept)
        reasons = [f"The repair does not say: {why_not}."] if why_not else []
        return Recommendation(
            plan=with_ranks(plan, best.alphas, self.settings.rank_budget),
            says=not why_not,
            confidence=0.0 if why_not else test.confidence,
            reasons=(*reasons, *test.reasons()),
            cost=cost,
            scores=best.alphas,
            door="repair",
            alphas=None if why_not else best.alphas,
            details={"about": self.pair.tuned[0].name, "keep": self.settings.keep, "front": front.records(),
                     "tested": test.records()},
        )  # fmt: skip


class Tested:
    """What was chosen, on the test sets.

    Attributes:
        chosen: of each family, as validation chose it.
        best: alphas by depth, unless on the validation sets another family forgets less beyond the interval, and
            does not lose more of the gain beyond it.
        points: base, tuned model and each family's choice, measured on the test sets.
    """

    def __init__(self, front: Front, chosen: dict[str, Point], seed: int) -> None:
        self.chosen = chosen
        self.seed = seed
        self.best = _best(chosen, seed)
        alphas = {"base": (0.0,) * front.blocks, "tuned": (1.0,) * front.blocks}
        alphas |= {family: point.alphas for family, point in chosen.items()}
        self.points = {name: front.point(name, each) for name, each in alphas.items()}

    @property
    def here(self) -> Point:
        """The best choice, tested."""
        return self.points[self.best.family]

    def given_back(self, family: str = "tuned") -> Estimate:
        """−ln p on general examples of the best choice minus another's: below 0 where it has forgotten less."""
        return difference(self.points[family].general, self.here.general, seed=self.seed)

    @property
    def why_not(self) -> str:
        """Why the repair is not advised, as a clause; "" where it is."""
        forgot = difference(self.points["base"].general, self.points["tuned"].general, seed=self.seed)
        if not forgot.low > 0:
            return f"on general test examples tuning forgot nothing beyond the interval ({_interval(forgot)})"
        if not self.given_back().high < 0:
            return (
                f"on general test examples nothing is given back beyond the interval ({_interval(self.given_back())})"
            )
        gain = difference(self.here.task, self.points["base"].task, seed=self.seed)
        if not gain.low > 0:
            return f"on the task's test examples no gain is left beyond the interval ({_interval(gain)})"
        return ""

    @property
    def confidence(self) -> float:
        """Share of resamples of the test examples in which it forgets less than the tuned model and beats the base."""
        points, seed = self.points, self.seed
        less = self.here.general.draws(seed) < points["tuned"].general.draws(seed)
        gains = self.here.task.draws(seed) < points["base"].task.draws(seed)
        return float(np.mean(less) * np.mean(gains))

    def reasons(self) -> list[str]:
        """What the test says, in words."""
        base, tuned, here = self.points["base"], self.points["tuned"], self.here
        gain, kept = base.task.value - tuned.task.value, base.task.value - here.task.value
        forgot, still = tuned.general.value - base.general.value, here.general.value - base.general.value
        said = [
            f"Tested, the alphas {self.best.family} gain {kept:.3f} nats per token (the tuned model {gain:.3f}) "
            f"and have forgotten {still:.3f} (it {forgot:.3f}; change {_interval(self.given_back())})."
        ]
        for family in FAMILIES:
            if family != self.best.family:
                than = self.given_back(family)
                verdict = "less than" if than.high < 0 else "more than" if than.low > 0 else "not clearly other than"
                said.append(f"That is {verdict} what {family} alphas forget ({_interval(than)}).")
        return said

    def records(self) -> list[dict[str, Any]]:
        """A row for each point, in nats per token."""
        base, rows = self.points["base"], []
        for name, point in self.points.items():
            gain = difference(point.task, base.task, seed=self.seed)
            forgotten = difference(base.general, point.general, seed=self.seed)
            row: dict[str, Any] = {"name": name, "alphas": list(point.alphas), "chosen": name == self.best.family}
            for key, each in (("gain", gain), ("forgotten", forgotten)):
                record = each.as_record()
                row |= {key: record["value"], f"{key}_low": record["low"], f"{key}_high": record["high"]}
            rows.append(row)
        return rows


def _sets(data: str, test: str | None, whose: str, settings: RecommendSettings) -> tuple[ExampleSet, ExampleSet]:
    """Validation and test examples.

    Raises:
        MidblockError: they overlap, or there are too few.
    """
    sizes = (settings.num_samples, settings.test_samples)
    if test is None:
        one, other = disjoint_parts(data, sizes, split=settings.split, seed=settings.seed, hint=LOWER)
        return one, other
    (one,) = disjoint_parts(data, sizes[:1], split=settings.split, seed=settings.seed, hint=LOWER)
    (other,) = disjoint_parts(test, sizes[1:], split=settings.split, seed=settings.seed, hint=LOWER)
    check_apart(one, other, (f"{whose} validation set", f"{whose} test set"))
    return one, other


def _best(chosen: dict[str, Point], seed: int) -> Point:
    ours = chosen[BY_DEPTH]
    clear = [
        each
        for each in chosen.values()
        if difference(ours.general, each.general, seed=seed).high < 0
        and not difference(ours.task, each.task, seed=seed).low > 0
    ]
    return min(clear, key=lambda each: each.general.value, default=ours)


def _interval(change: Estimate) -> str:
    return f"{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"
