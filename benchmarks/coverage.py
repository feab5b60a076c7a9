"""How often intervals hold the truth: every kind that the house gives, before (percentiles, plain jackknife) and after.

A line is a case: what is drawn, how many (prompts, steps, blocks), how often the interval held the true value as it was
made until now and as it is made, and how much wider the median interval is. `docs/results/coverage.md` is what

    python -m benchmarks.coverage --write docs/results/coverage.md

writes; --quick draws a tenth. Everything is seeded. The truth is that of the law the data are drawn from; of what
depends on the number of prompts (ranks, biased CKA, Procrustes, the mean shift) it is the mean over the replications.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit

from midblock.base import generator
from midblock.base.bootstrap import resample
from midblock.base.clusters import Clusters
from midblock.base.ratios import Ratios
from midblock.base.shares import share_intervals
from midblock.evaluation import TokenMean
from midblock.evaluation.exact_match import exact_interval, paired_interval, wilson
from midblock.interventions.probe.emergence import emergence
from midblock.metrics.catalogue import METRICS, values
from midblock.metrics.correlation import autocorrelation, pearson, spearman
from midblock.metrics.geometry import Pooled, States
from midblock.metrics.similarity import Pairing, Pairs
from midblock.metrics.uncertainty import Folds
from midblock.tuning.flow.agreement import agreement, mean_of_pairs, signal_to_noise

SIZES = (4, 8, 12, 24, 50, 200)
SHARES = ("one place", "4 places")
Array = np.ndarray
Ends = tuple[Array, Array]


@dataclass(frozen=True)
class Line:
    """One case: of how many replications the interval held the truth, before and after; None where none was given."""

    kind: str
    case: str
    N: int
    before: float | None
    after: float | None
    wider: float | None
    replications: int

    def cells(self) -> str:
        error = 100 * math.sqrt(0.05 * 0.95 / self.replications)
        parts = (_percent(self.before), _percent(self.after), "–" if self.wider is None else f"{self.wider:.2f}")
        return f"| {self.case} | {self.N} | {' | '.join(parts)} | {self.replications:,} | {error:.1f} |"


def _percent(share: float | None) -> str:
    return "–" if share is None or math.isnan(share) else f"{100 * share:.1f}"


def line(kind: str, case: str, N: int, truth: Any, before: Ends, after: Ends) -> Line:
    """Count."""
    held = []
    for low, high in (before, after):
        known = np.isfinite(low) & np.isfinite(high)
        inside = (low - 1e-9 <= truth) & (truth <= high + 1e-9)
        held.append(float(inside[known].mean()) if known.mean() > 0.5 else None)
    widths = [
        float(np.nanmedian(high - low)) if np.isfinite(high - low).any() else math.nan for low, high in (before, after)
    ]
    wider = widths[1] / widths[0] if widths[0] > 1e-3 * widths[1] and held[1] is not None else None
    return Line(kind, case, N, held[0], held[1], wider, len(before[0]))


def percentiles(sums: Array, counts: Array, seed: int) -> Ends:
    """The interval as it was: of Σs/Σc, N×C."""
    drawn = resample(len(sums), seed).astype(float)
    low, high = np.quantile((drawn @ sums) / (drawn @ counts), [0.025, 0.975], axis=0)
    return low, high


# Means


TAILS: dict[str, tuple[Callable[..., Array], float]] = {
    "normal": (lambda g, size: g.normal(size=size), 0.0),
    "uniform": (lambda g, size: g.uniform(size=size), 0.5),
    "exponential": (lambda g, size: g.exponential(size=size), 1.0),
    "log-normal, σ 1": (lambda g, size: np.exp(g.normal(size=size)), math.exp(0.5)),
    "log-normal, σ 1.5": (lambda g, size: np.exp(1.5 * g.normal(size=size)), math.exp(1.125)),
    "Student, 3 degrees": (lambda g, size: g.standard_t(3, size=size), 0.0),
    "Pareto, index 2": (lambda g, size: g.pareto(2, size=size), 1.0),
    "one in ten is 10 σ off": (lambda g, size: g.normal(size=size) + 10 * (g.random(size) < 0.1), 1.0),
}


def means(reps: int) -> Iterator[Line]:
    for case, (draw, truth) in TAILS.items():
        for N in SIZES:
            drawn, one = draw(generator(N, "coverage", case), (N, reps)), np.ones((N, 1))
            yield line(
                "mean over prompts", case, N, truth, percentiles(drawn, one, N), Ratios.of(drawn, one, N).intervals()
            )


def tokens(draw: np.random.Generator, N: int, reps: int) -> Array:
    return draw.integers(5, 60, size=(N, reps)).astype(float)


def token_means(reps: int) -> Iterator[Line]:
    """NLL: each prompt has a level of its own, log-normal, and its tokens spread about it."""
    for sigma in (0.5, 1.0):
        for N in SIZES:
            draw = generator(N, "coverage", "nll", str(sigma))
            counts, level = tokens(draw, N, reps), np.exp(sigma * draw.normal(size=(N, reps)))
            sums = counts * level + np.sqrt(counts) * draw.normal(size=(N, reps))
            case, truth = f"NLL by token, level log-normal σ {sigma}", math.exp(sigma**2 / 2)
            yield line(
                "mean over tokens", case, N, truth, percentiles(sums, counts, N), Ratios.of(sums, counts, N).intervals()
            )
            if sigma < 1:
                spread = 0.3 * counts * draw.standard_t(3, size=(N, reps)) + np.sqrt(counts) * draw.normal(
                    size=(N, reps)
                )
                change = 0.1 * counts + spread
                case, after = "change of NLL by token, Student, 3 degrees", Ratios.of(change, counts, N).intervals()
                yield line("paired difference", case, N, 0.1, percentiles(change, counts, N), after)


def beta(draw: np.random.Generator, share: float, alike: float, size: tuple[int, int]) -> Array:
    return draw.beta(share * (1 - alike) / alike, (1 - share) * (1 - alike) / alike, size=size)


def shares(reps: int) -> Iterator[Line]:
    """Each prompt has a share of its own, and so many values; `alike` is how much values of one prompt agree."""
    for places in ("one place", "4 places", "5–60 tokens"):
        for share, alike in ((0.9, 0.1), (0.9, 0.4), (0.97, 0.1), (0.97, 0.4), (0.99, 0.1)):
            if places == "one place" and alike > 0.1:
                continue
            for N in SIZES:
                draw = generator(N, "coverage", places, str(share), str(alike))
                counts = (
                    tokens(draw, N, reps)
                    if places == "5–60 tokens"
                    else np.full((N, reps), 4.0 if "4" in places else 1.0)
                )
                right = draw.binomial(counts.astype(int), beta(draw, share, alike, (N, reps))).astype(float)
                if places in SHARES:
                    right, counts = right / counts, np.ones((N, 1))
                case = f"{share:.0%} right, {places} a prompt" + (
                    "" if places == "one place" else f", alike by {alike}"
                )
                after = share_intervals(Ratios.of(right, counts, N))
                yield line("share", case, N, share, percentiles(right, counts, N), after)


def matches(reps: int) -> Iterator[Line]:
    """Exact match: one share (Wilson before), and the change of it on the same prompts (Newcombe, before and after)."""
    for share in (0.5, 0.97):
        for N in SIZES:
            right = generator(N, "coverage", "match", str(share)).binomial(N, share, size=reps)
            before, after = (np.array([interval(int(k), N) for k in right]).T for interval in (wilson, exact_interval))
            yield line("share", f"exact match, {share:.0%} right", N, share, tuple(before), tuple(after))
    for lost, won in ((0.05, 0.05), (0.02, 0.1)):
        for N in SIZES:
            found = generator(N, "coverage", "change", str(won)).multinomial(
                1, [lost, won, 0.6, 0.4 - lost - won], size=(reps // 4, N)
            )
            sides = [torch.from_numpy(found[..., a] + found[..., 2] > 0) for a in (0, 1)]
            after = np.array([paired_interval(a, b) for a, b in zip(*sides, strict=True)]).T
            change = (found[..., 1] - found[..., 0]).T.astype(float)
            case = f"exact match, {lost:.0%} lost and {won:.0%} won"
            yield line("paired difference", case, N, won - lost, percentiles(change, np.ones((N, 1)), N), tuple(after))


def accuracies(reps: int) -> Iterator[Line]:
    """The change of next-token accuracy: of 5–60 tokens a prompt few are lost or won, as the prompt has it."""
    for lost, won in ((0.005, 0.005), (0.01, 0.03)):
        for N in SIZES:
            draw = generator(N, "coverage", "accuracy", str(won))
            counts = tokens(draw, N, reps)
            level = draw.exponential(size=(N, reps))
            gone, new = (draw.binomial(counts.astype(int), np.clip(rate * level, 0, 1)) for rate in (lost, won))
            ratios = Ratios.of((new - gone).astype(float), counts, N)
            wide = Ratios(
                ratios.value, np.hypot(ratios.error, 2**0.5 / counts.sum(0)), ratios.known, ratios.residuals, counts, N
            )
            before = percentiles((new - gone).astype(float), counts, N)
            yield line(
                "paired difference",
                f"accuracy by token, {lost:.1%} lost and {won:.1%} won",
                N,
                won - lost,
                before,
                wide.intervals(),
            )


@dataclass(frozen=True)
class _Kept:
    """Intervals, one a replication."""

    before: list[tuple[float, float]]
    after: list[tuple[float, float]]

    def add(self, before: Ends, after: Ends, column: int) -> None:
        for kept, ends in ((self.before, before), (self.after, after)):
            kept.append((float(ends[0][column]), float(ends[1][column])))

    @property
    def both(self) -> tuple[Ends, Ends]:
        before, after = np.array(self.before).T, np.array(self.after).T
        return (before[0], before[1]), (after[0], after[1])


def best_of(reps: int) -> Iterator[Line]:
    """Nothing does anything: how often the best of m cells is not said to do something (held = rightly not said)."""
    for m in (5, 24):
        for tail in ("normal", "log-normal, σ 1"):
            draw_of, truth = TAILS[tail]
            for N in SIZES[1:]:
                draw, ends = generator(N, "coverage", "best", m), _Kept([], [])
                for rep in range(reps // 8):
                    shared = draw_of(draw, (N, 1)) - truth
                    cells = 0.7 * (draw_of(draw, (N, m)) - truth) + 0.7 * shared
                    ratios = Ratios.of(cells, np.ones((N, 1)), rep % 8)
                    best = int(np.argmin(ratios.value))
                    ends.add(percentiles(cells, np.ones((N, 1)), rep % 8), ratios.together(), best)
                case = f"best of {m} cells that do nothing, {tail}"
                yield line("best of several", case, N, 0.0, *ends.both)


def questions(reps: int) -> Iterator[Line]:
    """Variants of 85 questions, half of the variance between questions."""
    for N in (24, 50, 200, 1000):
        draw, ends = generator(N, "coverage", "questions"), _Kept([], [])
        for rep in range(reps // 8):
            of = draw.integers(85, size=N)
            clusters = Clusters.of([str(number) for number in of])
            each = (draw.normal(size=85)[of] + draw.normal(size=N))[:, None]
            one = np.ones((N, 1))
            sums, counts = (clusters.sums(each), clusters.sums(one)) if clusters else (each, one)
            ends.add(percentiles(each, one, rep % 8), Ratios.of(sums, counts, rep % 8).intervals(), 0)
        yield line("variants of questions", "mean, 85 questions", N, 0.0, *ends.both)


# What is computed from all prompts


D = 24
ONE = ("dataset_entropy", "effective_rank", "effective_rank_centered", "spectral_norm", "gini", "intrinsic_dimension")
TWO = (
    "cka",
    "cka_debiased",
    "cosine_centered",
    "change_intensity_relative",
    "mean_shift",
    "mean_shift_relative",
    "procrustes",
)


def states(draw: np.random.Generator, N: int, tail: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Base and tuned states of N prompts in D directions; heavy: prompts differ in size, log-normal."""
    scale = np.exp(-np.arange(D) / 6)
    size, moved = (np.exp(draw.normal(size=(N, 1))) if tail == "heavy" else 1.0 for _ in range(2))
    noise = (
        (lambda: draw.standard_t(3, size=(N, D)))
        if tail == "Student, 3 degrees"
        else (lambda: draw.normal(size=(N, D)))
    )
    base = (0.5 + scale * noise()) * size
    return torch.from_numpy(base), torch.from_numpy(base + 0.1 + 0.4 * scale * noise() * moved)


def plain_jackknife(value: float, without: Array, size: Array, N: int) -> tuple[float, float]:
    """The interval as it was."""
    share = N / size
    pull = (share - 1) * (value - without)
    error = np.sqrt(np.mean(np.square(pull - (pull / share).sum()) / (share - 1)))
    half = float(stdtrit(len(size) - 1, 0.975) * error)
    return value - half, value + half


def all_together(reps: int) -> Iterator[Line]:
    for tail in ("normal", "heavy", "Student, 3 degrees"):
        for N in SIZES[:-1] if tail == "normal" else SIZES:
            count = max(4, reps // (20 if N > 50 else 10))
            found: dict[str, list[Any]] = {}
            for rep in range(count):
                base, tuned = states(generator(rep, "coverage", tail, N), N, tail)
                one, two = States.of(base), Pairing.of(base, tuned)
                new, old = Folds.of(N, rep), Folds.of(N, rep, groups=20)
                of = _evaluate(one, two, new), _evaluate(one, two, old) if 20 < N <= 40 else None
                sizes = [
                    np.array([float(N - kept.shape[1]) for kept in folds.kept for _ in kept]) for folds in (new, old)
                ]
                for name, (value, without) in of[0].items():
                    before = plain_jackknife(value, (of[1] or of[0])[name][1], sizes[1], N)
                    made = new.intervals(np.array([value]), without[:, None], [METRICS[name].bounds])
                    found.setdefault(name, []).append((value, *before, *(float(end[0]) for end in made)))
            for name, rows in found.items():
                value, *ends = np.array(rows).T
                yield line("jackknife", f"`{name}`, {tail}", N, value.mean(), (ends[0], ends[1]), (ends[2], ends[3]))


def _evaluate(one: States, two: Pairing, folds: Folds) -> dict[str, tuple[float, Array]]:
    def of(keep: torch.Tensor) -> dict[str, torch.Tensor]:
        pooled, pairs = Pooled(one, keep), Pairs(two, keep)
        return values(ONE, pooled) | values(TWO, pairs)

    whole, parts = of(folds.whole), [of(kept) for kept in folds.kept]
    return {name: (float(value), torch.cat([part[name] for part in parts]).numpy()) for name, value in whole.items()}


# Steps and depths


def flows(reps: int) -> Iterator[Line]:
    """Gradients μ + noise in 200 dimensions; heavy: the noise of a step has a log-normal length."""
    for case, signal, heavy in (("no signal", 0.0, 0.0), ("as much signal as noise", 1.0, 0.0), ("heavy", 2.0, 1.0)):
        for K in (3, 4, 8):
            for name, measure, old in (("agreement", agreement, True), ("signal-to-noise", signal_to_noise, False)):
                if heavy and not old:
                    continue
                draw, rows = generator(K, "coverage", case), []
                for _ in range(max(4, reps // 4)):
                    noise = draw.normal(size=(K, 200)) / 200**0.5 * np.exp(heavy * draw.normal(size=(K, 1)))
                    gradients = torch.from_numpy(signal / 200**0.5 + noise)
                    gram = gradients @ gradients.T
                    if (made := measure(gram)) is not None:
                        rows.append((made.value, *_old_steps(gram, old), made.low, made.high))
                value, *ends = np.array(rows).T
                truth = value.mean() if old else signal**2
                yield line("steps", f"{name}, {case}", K, truth, (ends[0], ends[1]), (ends[2], ends[3]))


def _old_steps(gram: torch.Tensor, cosines: bool) -> tuple[float, float]:
    K = len(gram)

    def measure(part: torch.Tensor) -> float:
        if cosines:
            return mean_of_pairs(part / part.diagonal().sqrt()[:, None] / part.diagonal().sqrt())
        return mean_of_pairs(part) / (float(part.diagonal().mean()) - mean_of_pairs(part))

    without = np.array([measure(gram[keep][:, keep]) for keep in ([s for s in range(K) if s != k] for k in range(K))])
    half = float(stdtrit(K - 1, 0.975) * np.sqrt(np.square(without - without.mean()).sum() * (K - 1) / K))
    return measure(gram) - half, measure(gram) + half


def curves(draw: np.random.Generator, case: str, count: int, n: int) -> Array:
    """Pairs of curves that have nothing to do with each other."""
    white = draw.normal(size=(count, 2, n))
    if case == "both rise":
        return draw.exponential(size=(count, 2, n)).cumsum(2)
    if case == "walks":
        return white.cumsum(2)
    if case == "quartics":
        basis = np.linalg.qr(np.stack([np.linspace(-1, 1, n) ** power for power in range(5)], axis=1))[0]
        return white[:, :, :5] @ basis.T
    if case == "smooth, ρ 0.8":
        white[:, :, 1:] *= 0.6
        for step in range(1, n):
            white[:, :, step] += 0.8 * white[:, :, step - 1]
    return white


def depths(reps: int) -> Iterator[Line]:
    for case in ("no trend", "smooth, ρ 0.8", "walks", "quartics", "both rise"):
        for n in (12, 24, 48):
            pairs = curves(generator(n, "coverage", case), case, max(8, reps // 5), n)
            for name, correlate in (("Pearson", pearson), ("Spearman", spearman)):
                made = [correlate(x, y) for x, y in pairs]
                before = np.array(
                    [_old_correlation(x, y, each.value, name) for (x, y), each in zip(pairs, made, strict=True)]
                ).T
                after = np.array([(each.low, each.high) for each in made]).T
                yield line("depth curves", f"{name}, unrelated curves: {case}", n, 0.0, tuple(before), tuple(after))


def _old_correlation(x: Array, y: Array, r: float, name: str) -> tuple[float, float]:
    if name == "Spearman":
        x, y = (np.argsort(np.argsort(each)).astype(float) for each in (x, y))
    n = len(x)
    both = np.stack([autocorrelation(x), autocorrelation(y)])[:, 1 : n // 2 + 1]
    ended = np.flatnonzero((both <= 0).any(axis=0))
    lags = np.arange(1, (ended[0] if len(ended) else both.shape[1]) + 1)
    effective = n / (1 + 2 * float(((1 - lags / n) * both[:, : len(lags)].prod(axis=0)).sum()))
    if effective <= 3:
        return -1.0, 1.0
    half = 1.959963984540054 * math.sqrt((1 + r**2 / 2 if name == "Spearman" else 1) / (effective - 3))
    middle = math.atanh(max(-1 + 1e-15, min(1 - 1e-15, r)))
    return math.tanh(middle - half), math.tanh(middle + half)


def emergences(reps: int) -> Iterator[Line]:
    """The first of 12 blocks with half of the final accuracy, which rises from 0 to 0.8 around block 6 and a third."""
    L, rise = 12, 1.0
    truth_curve = 0.8 / (1 + np.exp(-(np.arange(L + 1) - 1 - 6.33) / rise))
    truth = int(np.argmax(truth_curve >= 0.5 * truth_curve[-1])) - 1
    for N in (8, 12, 24, 50):
        draw, rows = generator(N, "coverage", "emergence"), []
        for rep in range(reps // 8):
            counts = tokens(draw, N, 1)[:, 0].astype(int)
            shift = draw.normal(size=N)
            level = 0.8 / (1 + np.exp(-(np.arange(L + 1)[:, None] - 1 - 6.33 - shift) / rise))
            right = torch.from_numpy(draw.binomial(counts, level)).double()
            curve = [TokenMean.of(torch.arange(N), each, torch.from_numpy(counts), share=True) for each in right]
            found = emergence(curve, seed=rep % 8)
            rows.append((found.low, found.high) if found and found.low is not None else (math.nan, math.nan))
        low, high = np.array(rows, dtype=float).T
        yield line("place", "depth of emergence, 12 blocks", N, truth, (low, high), (low, high))


PARTS = (means, token_means, shares, matches, accuracies, best_of, questions, all_together, flows, depths, emergences)


def table(lines: Sequence[Line]) -> str:
    """Markdown, a table a kind."""
    found = []
    for kind in dict.fromkeys(each.kind for each in lines):
        rows = "\n".join(each.cells() for each in lines if each.kind == kind)
        names = ("case", "N", "before, %", "after, %", "width, ×", "replications", "± at 95 %")
        head = f"| {' | '.join(names)} |\n|{' --- |' * len(names)}"
        found.append(f"## {kind[0].upper()}{kind[1:]}\n\n{head}\n{rows}\n")
    return "\n".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the replications")
    parser.add_argument("--only", help="one of " + ", ".join(part.__name__ for part in PARTS))
    parser.add_argument("--write", type=Path, help="write the tables below the words that stand in this file")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    reps = 100 if chosen.quick else 1000
    lines = []
    for part in PARTS:
        if chosen.only in (None, part.__name__):
            lines += list(part(reps))
            print(part.__name__, flush=True)
    if chosen.write is None:
        print(table(lines))
        return
    words = chosen.write.read_text().partition("\n## ")[0] if chosen.write.exists() else "# Coverage\n"
    chosen.write.write_text(f"{words.rstrip()}\n\n{table(lines)}")


if __name__ == "__main__":
    main()
