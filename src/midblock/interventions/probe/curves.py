"""What a probe found: curves by depth, and what to say about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from midblock.base import LayerRow
from midblock.base.clusters import Clusters
from midblock.evaluation import TokenMean
from midblock.interventions.answer_rows import share_right, token_means
from midblock.interventions.probe.emergence import Emergence, emergence
from midblock.trace import RowStore


def key_of(kind: str, model: int, layer: int) -> str:
    """Where the rows of a kind ("exit" or "answer") stand in the store.

    Args:
        model: its place in the pair; names come from folders, and are part of no key.
    """
    return f"{kind}|{layer}|{model}"


@dataclass(frozen=True)
class Curves:
    """One model by depth.

    Attributes:
        accuracy, nll: behind the embedding, block 0, … block L-1.
        exact_match: by block, where answers were generated.
    """

    name: str
    accuracy: Sequence[TokenMean]
    nll: Sequence[TokenMean]
    exact_match: dict[int, TokenMean]
    seed: int

    @property
    def blocks(self) -> int:
        return len(self.nll) - 1

    def rows(self, dataset: str) -> list[LayerRow]:
        """For the LayerTable."""
        found = []
        for position, (accuracy, nll) in enumerate(zip(self.accuracy, self.nll, strict=True)):
            layer = position - 1
            by_metric = {
                "exit_accuracy": accuracy.interval,
                "exit_nll": nll.interval,
                "exit_perplexity": nll.interval.exponential(),
            }
            if layer in self.exact_match:
                by_metric["exit_exact_match"] = self.exact_match[layer].interval
            for metric, each in by_metric.items():
                place = (self.name, layer, self.blocks, metric)
                found.append(LayerRow(*place, each.value, each.n, each.low, each.high, dataset))
        return found

    @cached_property
    def emergence(self) -> dict[str, Emergence]:
        """Of accuracy; and of exact match where it is known behind every block."""
        found = {"accuracy": emergence(self.accuracy, seed=self.seed)}
        if len(self.exact_match) == self.blocks:
            curve = [self.exact_match[layer] for layer in range(self.blocks)]
            found["exact_match"] = emergence(curve, first=0, seed=self.seed)
        return {name: each for name, each in found.items() if each is not None}

    def final(self) -> dict[str, Any]:
        nll = self.nll[-1].interval
        ends = {"accuracy": self.accuracy[-1].interval, "nll": nll, "perplexity": nll.exponential()}
        if self.blocks - 1 in self.exact_match:
            ends["exact_match"] = self.exact_match[self.blocks - 1].interval
        return {name: each.as_record() for name, each in ends.items()}


def read_curves(
    name: str, model: int, blocks: int, store: RowStore, seed: int, clusters: Clusters | None = None
) -> Curves:
    """Finish the rows of one model, `model` being its place in the pair, `clusters` as of `token_means`."""
    accuracy, nll, answered = [], [], {}
    for layer in range(-1, blocks):
        right, likelihood = token_means(store, key_of("exit", model, layer), seed, clusters)
        accuracy.append(right)
        nll.append(likelihood)
        if (share := share_right(store, key_of("answer", model, layer), seed, clusters)) is not None:
            answered[layer] = share
    return Curves(name, accuracy, nll, answered, seed)


def summarize_probe(curves: Sequence[Curves]) -> dict[str, Any]:
    """What `summary.json` holds."""
    models = []
    for each in curves:
        found = {name: value.as_record() for name, value in each.emergence.items()}
        models.append({"name": each.name, "reading": _reading(each), "emergence": found, "final": each.final()})
    return {"headline": _headline(curves), "models": models}


def _reading(curves: Curves) -> str:
    at, final = curves.emergence.get("accuracy"), curves.accuracy[-1].value
    if at is None:
        return f"{curves.name} predicts no answer token rightly, at any depth."
    between = f" (95 % interval {_block(at.low)} to {_block(at.high)})" if at.low is not None else ""
    return (
        f"{curves.name} predicts {final:.1%} of the answer tokens; half of that is reached behind {_block(at.layer)}"
        f" of {curves.blocks}{between}."
    )


def _headline(curves: Sequence[Curves]) -> str:
    found = [(each.name, each.emergence.get("accuracy")) for each in curves]
    known = [f"block {at.layer} in {name}" if at.layer >= 0 else f"the embedding in {name}" for name, at in found if at]
    if not known:
        return "No answer token is predicted rightly, at any depth"
    return (
        f"Half of the final next-token accuracy is reached behind {' and '.join(known)}, of {curves[0].blocks} blocks"
    )


def _block(layer: int | None) -> str:
    return "the embedding" if layer == -1 else f"block {layer}"
