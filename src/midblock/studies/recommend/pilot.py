"""The second door: a pilot. A few steps of uniform LoRA on every projection of every block, then a look at what moved.

Three views of it, on held-out examples: what each block's own tuning changes, what each tuned block gains when put into
the base, and how hard the base's loss pulls on each block. A step is timed first, and what the pilot will cost is told
before it is spent. Cost: the steps, and about L/2 + 8 forward passes over the held-out examples.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from midblock.analysis import analyze
from midblock.base import Estimate, LayerTable, MidblockError, Progress, Silent
from midblock.base.plural import counted
from midblock.checkpoints import BASE, LoadSettings, Pair, load_models, load_pair
from midblock.data import Batch, ExampleSet, encode, make_batches
from midblock.evaluation import mean_nll
from midblock.interventions import swap
from midblock.runs.disjoint import part_of
from midblock.runs.request import check_all
from midblock.runs.stopping import seconds_of
from midblock.studies.recommend.combine import combine
from midblock.studies.recommend.curve import Curve, over_units
from midblock.studies.recommend.drawn import disjoint_parts
from midblock.studies.recommend.gradients import gradient_norms
from midblock.studies.recommend.measured import gain_curve, own_curve_of
from midblock.studies.recommend.recommendation import Recommendation
from midblock.studies.recommend.settings import RecommendSettings
from midblock.tuning import tune

FULL = 1000  # steps of one full tuning, which the cost is compared with
SHARE = 0.1  # of that, a pilot without a budget of its own takes no more
LEAST, FEWEST = 8, 4  # steps, and groups of held-out examples, that tell something
GROUP = 4  # held-out examples in each gradient
ABOUT = "the pilot"
LOWER = "lower --num-samples or --steps"
FILE_LIKE = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class Pilot:
    """A pilot whose cost is known.

    Attributes:
        training, held: examples; no text is in both.
        batches: the held-out examples' tokens.
        step: seconds of one step.
        start: seconds that a training takes besides its steps.
        group: seconds that looking at four held-out examples will take, estimated.
        spent: seconds that finding this out has taken.
    """

    base: str
    settings: RecommendSettings
    loading: LoadSettings
    training: ExampleSet
    held: ExampleSet
    batches: tuple[Batch, ...]
    step: float
    start: float
    group: float
    spent: float

    @classmethod
    def plan(cls, base: str, data: str | ExampleSet, settings: RecommendSettings, loading: LoadSettings) -> Pilot:
        """Draw the examples, and time a step and a forward pass.

        Raises:
            MidblockError: a budget too small for one step, too few examples, or what `tune` refuses.
        """
        began = time.perf_counter()
        wanted = (settings.num_samples, settings.steps * settings.per_device_train_batch_size)
        held, training = disjoint_parts(data, wanted, split=_split(data, settings), seed=settings.seed, hint=LOWER)
        pair = load_models(base, **asdict(loading))
        check_all("recommend", pair)
        options: dict[str, Any] = {"max_length": settings.max_length, "template": settings.template}
        prompts = encode(held, pair.tokenizer, **options).prompts
        groups = [prompts[first : first + GROUP] for first in range(0, len(prompts), GROUP)]
        batches = tuple(batch for group in groups for batch in make_batches(group, batch_tokens=settings.batch_tokens))
        forward = 0.0
        for _ in range(2):  # the first pass of a process is slower
            timed = time.perf_counter()
            mean_nll(pair.base.model, batches[:1], region="all")
            forward = time.perf_counter() - timed
        _load_trainer()
        group = forward * (pair.blocks / 2 + 8)
        draft = cls(base, settings, loading, training, held, batches, 0.0, 0.0, group, 0.0)
        timed = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            lines = draft.train(Path(scratch) / "timed", 2, Silent())
        step = max(lines[1] - lines[0], 1e-6)
        start = max(0.0, time.perf_counter() - timed - 2 * step)
        return replace(draft, step=step, start=start, spent=time.perf_counter() - began).modest()

    def modest(self) -> Pilot:
        """Without a budget, so few held-out examples that looking takes half of the share at most; 16 at least."""
        count = GROUP * max(FEWEST, int(SHARE / 2 * FULL * self.step / max(self.group, 1e-9)))
        if self.settings.budget is not None or count >= len(self.held):
            return self
        batches = tuple(batch for batch in self.batches if int(batch.index.max()) < count)
        return replace(self, held=part_of(self.held, range(count)), batches=batches)

    @property
    def looking(self) -> float:
        """Seconds that looking will take."""
        return self.group * len(self.held) / GROUP

    @property
    def steps(self) -> int:
        """How many the budget has room for; without one, a tenth of a tuning has, `LEAST` at least.

        Raises:
            MidblockError: not one.
        """
        settings, beside = self.settings, self.spent + self.start + self.looking
        if settings.budget is None:
            return min(settings.steps, max(LEAST, int(SHARE * FULL - beside / self.step)))
        room = seconds_of(settings.budget) - beside
        if room < self.step:
            needed = beside + self.step
            what = f"a budget of {settings.budget} is too small for one step: that takes about {_time(needed)}"
            raise MidblockError(what, hint=f"--budget {int(needed) + 1}s, or fewer --num-samples")
        return min(settings.steps, int(room / self.step))

    @property
    def told(self) -> str:
        """What it will cost, in words."""
        seconds = self.spent + self.start + self.looking + self.steps * self.step
        return (
            f"Pilot: {counted(self.steps, 'step')} of {_time(self.step)} each and a look at "
            f"{counted(len(self.held), 'held-out example')}, "
            f"about {_time(seconds)} in all: {seconds / (FULL * self.step):.1%} of one tuning of {FULL:,} steps."
        )

    def train(self, folder: Path, steps: int, progress: Progress) -> list[float]:
        """Take so many steps.

        Returns:
            The seconds after each of them.
        """
        settings = self.settings
        loading = {name: value for name, value in asdict(self.loading).items() if name != "device_map"}
        made = tune(
            self.base,
            self.training,
            "all",
            target_modules="all",
            lora_r=settings.lora_r,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="constant",
            per_device_train_batch_size=settings.per_device_train_batch_size,
            max_steps=steps,
            max_length=settings.max_length,
            template=settings.template,
            seed=settings.seed,
            save_steps=0,
            output_dir=folder,
            progress=progress,
            **loading,
        )
        return [float(line["seconds"]) for line in made.log]

    def run(self, progress: Progress) -> Recommendation:
        """Train, look, and recommend."""
        began, steps = time.perf_counter(), self.steps
        pair, curves = self.look(progress)
        seconds = self.spent + time.perf_counter() - began
        share = seconds / (FULL * self.step)
        cost = {
            "seconds": round(seconds, 3),
            "steps": steps,
            "step_seconds": round(self.step, 4),
            "share_of_full": share,
        }
        return self.answer(pair.blocks, curves, cost)

    def answer(self, total: int, curves: Sequence[Curve], cost: Mapping[str, float]) -> Recommendation:
        """What the views come to."""
        budget = self.settings.rank_budget
        found = combine(curves, total, door="pilot", cost=cost, rank_budget=budget, details={"about": ABOUT})
        if not cost:
            return found
        steps, time = counted(int(cost["steps"]), "step"), _time(cost["seconds"])
        took = f"It took {steps} and {time} in all: {cost['share_of_full']:.1%} of one"
        return replace(found, reasons=(*found.reasons, f"{took} tuning of {FULL:,} steps."))

    def look(self, progress: Progress) -> tuple[Pair, list[Curve]]:
        """Train, and look: the base with its tuned model, and the three views. The adapter itself is not kept."""
        with tempfile.TemporaryDirectory() as scratch:
            self.train(Path(scratch) / "pilot", self.steps, progress)
            pair = load_pair(self.base, str(Path(scratch) / "pilot" / "adapter"), **asdict(self.loading))
            return pair, self.curves(pair, progress)

    def curves(self, pair: Pair, progress: Progress) -> list[Curve]:
        """The three views."""
        name, count, settings = pair.tuned[0].name, len(self.held), self.settings
        reading: dict[str, Any] = {
            "num_samples": count,
            "max_length": settings.max_length,
            "template": settings.template,
            "batch_tokens": settings.batch_tokens,
            "seed": settings.seed,
            "progress": progress,
        }
        changed = analyze(pair, self.held, metrics="change_own", num_token_samples=count, precision_floor=False,
                          weights=False, **reading)  # fmt: skip
        swapped = swap(pair, self.held, segments="each", direction="into_base", heads="base", **reading)
        norms = gradient_norms(pair.base.model, self.batches)
        own = own_curve_of(changed, name, settings.seed)
        gains = gain_curve(ABOUT, swap_changes(swapped), settings.seed)
        found = [own, gains, gradient_curve(norms, BASE, settings.seed)]
        return [replace(curve, about=ABOUT) if curve.about == name else curve for curve in found if curve is not None]


def gradient_curve(norms: np.ndarray, about: str, seed: int = 0) -> Curve:
    """The mean gradient norm of each block, groups of examples resampled."""
    spans = tuple((block, block) for block in range(norms.shape[1]))
    draws = over_units(norms, np.ones(len(norms)), seed)
    resampled = "" if draws is None else f"groups of {GROUP} examples"
    return Curve("flow", "Gradient norm", about, spans, norms.mean(0), draws, resampled)


def swap_changes(table: LayerTable) -> dict[tuple[int, int], Estimate]:
    """What each tuned block, put into the base, changed of its NLL."""
    curve = table.curve("swap_nll_change", "base", "base_head")
    curve = curve[(curve.layer >= 0) & (curve.layer < table.blocks)]
    columns = (curve[name].tolist() for name in ("layer", "value", "low", "high", "n"))
    return {(layer, layer): Estimate(value, low, high, n) for layer, value, low, high, n in zip(*columns, strict=True)}


def _split(data: str | ExampleSet, settings: RecommendSettings) -> str | None:
    """That of training where there are splits: what a sweep is judged on later must not have been looked at."""
    if settings.split is not None or not isinstance(data, str):
        return settings.split
    return None if Path(data).suffix.lower() in FILE_LIKE else "train"


def _load_trainer() -> None:
    """Load what training loads once in a process, so that it is not counted as a part of each training."""
    from midblock.tuning.loop import trainer  # noqa: F401


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
