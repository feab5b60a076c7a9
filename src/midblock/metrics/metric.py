"""Metric: what one number is called, what it is computed from and how, and what a reader needs to read it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from midblock.base.few import too_few

# Suffixes of the reference rows that stand beside a metric's own.
NO_SINKS = ".no_sinks"  # the metric over the tokens that are no sinks; the suffixes below may follow it
NULL = ".null"  # the metric between unrelated prompts (permutation); low and high bound 95 % of the permutations
SPLIT_FLOOR = ".split_floor"  # |metric on one half of the prompts - on the other half|, base model
PRECISION_FLOOR = ".precision_floor"  # base in float32 against base in bfloat16
RANDOM = ".random"  # under random changes of the tuned model's norms: their mean, and where another draw would lie
EQUAL_STEP = ".equal_step"  # under the tuned model's change, scaled so that every block that moved takes an equal step
SEED = ".seed"  # with a number from 1: the metric on another sample of prompts, drawn apart from all others
SEEDS = ".seeds"  # mean over all samples of prompts; low and high are the smallest and the largest of them

REFERENCES = (
    NULL,
    SPLIT_FLOOR,
    PRECISION_FLOOR,
    RANDOM,
    EQUAL_STEP,
    SEEDS,
)  # with SEED and a number, all that may follow a metric


def suffixes(metric: str) -> tuple[str, str]:
    """What follows the name of a row's metric: the set of tokens, and which reference it is; "" where it is neither."""
    name, dot, rest = metric.partition(".")
    tokens = NO_SINKS if f"{dot}{rest}.".startswith(f"{NO_SINKS}.") else ""
    return tokens, metric.removeprefix(name + tokens)


def is_estimate(metric: str) -> bool:
    """Whether a row's metric is a metric itself, over all tokens or without sinks, and no reference beside one."""
    return "." not in metric.removesuffix(NO_SINKS)


TOKEN_SOURCES = ("pooled", "tokens", "own")
WEIGHT_SOURCES = ("weights", "spectrum", "spaces", "experts", "expert_spaces")


@dataclass(frozen=True)
class Metric:
    """What a metric is called, needs and means.

    Attributes:
        title: heading for people.
        unit: unit or range of the value, as text ("0–1", "nats", "relative").
        source: what it is computed from: "pooled" (prompt means: `Pooled`, or `Pairs` where `paired`), "tokens" (one
            prompt's states: `Tokens`), "own" (a block run on the base's states: `OwnChanges`), "lens" (logit lens:
            `Predictions`), "heads" (both models' predictions), "views" (augmented prompts: `Views`),
            "routers" (choices of experts: `Routings`), "loads" (how often each was chosen: `Loads`), or of a weight its
            norms ("weights": `Sums`; of one expert alone "experts"), its change's singular values ("spectrum":
            `Spectrum`) or its top singular spaces ("spaces": `Spaces`; of one expert alone "expert_spaces").
        paired: True when it compares a tuned model with the base; False when it describes one model.
        interval: "bootstrap" (studentised, of a mean over prompts), "share" (of a mean of shares of yes-or-no values),
            "jackknife" (delete-group, of what is computed from all prompts), or "" where none is defined.
        meaning: one sentence for the reader of a report.
        bounds: smallest and largest value possible, None where open.
        least: smallest value of what is estimated, where an estimate by chance may lie below it; intervals end there.
        sets: the metric sets it belongs to: "p1" (the paper's), "standard" (the default); "all" holds every one.
        compute: from the statistic that `source` names to a value for each prompt (bootstrap, share), for each index
            set (others), or to one number (weights); None where it is not defined. No function: the metric is described
            here and measured by another verb.
        null: from `Shuffled` pairs to the metric's value for each permutation, where unrelated prompts say something.
        largest: of several tensors that share a row (experts) the largest value counts, instead of the mean.
        same: of what compares, its value where both models are one: 0 of a distance, which a change makes larger, 1 of
            a similarity, which it makes smaller. None where a change has no direction in it.
        floor_of: the metric whose precision floor stands for its own, where it has none.
        depends_on_n: whether its expectation hangs on the number of prompts, so that runs of unlike N do not compare.
        by_expert: it has a row for each expert of a block, and its column `module` says which: `expert:7`.
        debiased: of such a metric, the one that says the same and does not; "" where none is given.
    """

    title: str
    unit: str
    source: str
    paired: bool
    interval: str
    meaning: str
    bounds: tuple[float | None, float | None] = (None, None)
    sets: frozenset[str] = frozenset({"standard"})
    compute: Callable[[Any], Any] | None = None
    null: Callable[[Any], Any] | None = None
    largest: bool = False
    same: float | None = None
    floor_of: str = ""
    depends_on_n: bool = False
    debiased: str = ""
    by_expert: bool = False
    least: float | None = None

    def possible(self, value: float) -> tuple[float | None, float | None]:
        """Where the interval of an estimate may lie: within the bounds, and not below what is estimated can be."""
        low, high = self.bounds
        return (low if self.least is None else min(self.least, value)), high

    def without_interval(self, n: int) -> str:
        """Why a number has no interval; empty where it has one, and where none is meant.

        Args:
            n: what is resampled: prompts, or the questions that they are variants of.
        """
        kinds = {"bootstrap": "mean", "share": "share", "jackknife": "jackknife"}
        if self.interval in kinds:
            return too_few(kinds[self.interval], n)
        meant = not (self.of_weights or self.compute is None)
        return "it changes by jumps when prompts do: no interval was found that holds" if meant else ""

    @property
    def over_tokens(self) -> bool:
        """Whether it is a mean over a prompt's tokens, or of their states: it has another value without sinks."""
        return self.source in TOKEN_SOURCES

    def change(self, value: float) -> float:
        """How far a value is from that of a model compared with itself, ≥ 0; NaN where that says nothing."""
        return math.nan if self.same is None else abs(value - self.same)

    @property
    def caption(self) -> str:
        """Its meaning, with what a reader must know of the number of prompts."""
        if not self.depends_on_n:
            return self.meaning
        instead = f"{self.debiased} does not" if self.debiased else "no estimate that does not is given"
        return f"{self.meaning} Depends on the number of prompts; {instead}."

    @property
    def of_weights(self) -> bool:
        """Whether it is read off the weights, with no prompt at all."""
        return self.source in WEIGHT_SOURCES
