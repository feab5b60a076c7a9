"""What one layer gave: estimates, values by prompt whose means wait for the other layers, and states that are alike.

It is kept as rows of a store, in order, so that a run that is killed among the layers goes on at the one it had
reached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor

from midblock.base import Estimate
from midblock.metrics.spectra import single_threaded_workers
from midblock.runs.sharing import shared
from midblock.trace import RowStore

RESIDUAL = "residual"  # the module of what is about a layer's states


@dataclass(frozen=True)
class Key:
    """Where a row stands; the metric with its suffix, if it has one; of one expert's numbers its module."""

    layer: int
    model: str
    metric: str
    module: str = RESIDUAL

    @property
    def metric_and_module(self) -> str:
        """The metric, with the module where it is not the usual one."""
        return self.metric if self.module == RESIDUAL else f"{self.metric}@{self.module}"


Found = tuple[Key, Estimate]
Column = tuple[Key, Tensor]  # a value a prompt; how many prompts, depends on the metric


@dataclass(frozen=True)
class Evaluated:
    """One layer.

    Attributes:
        found: estimates, in the order of the table.
        columns: values by prompt.
        alike: by model, the number of prompts and of their different states, where those are fewer.
    """

    layer: int
    found: list[Found] = field(default_factory=list)
    columns: list[Column] = field(default_factory=list)
    alike: dict[str, tuple[int, int]] = field(default_factory=dict)

    def put(self, store: RowStore) -> None:
        """Keep it as rows: an estimate is one row of four numbers, a column has a row for each prompt."""
        kept = [
            ("found", key, torch.tensor([[e.value, e.low, e.high, e.n]], dtype=torch.float64)) for key, e in self.found
        ]
        kept += [("column", key, column) for key, column in self.columns]
        kept += [
            ("alike", Key(self.layer, model, ""), torch.tensor([two], dtype=torch.float64))
            for model, two in self.alike.items()
        ]
        for place, (kind, key, values) in enumerate(kept):
            name = f"{kind}|{self.layer}|{place:06d}|{key.metric_and_module}|{key.model}"
            store.update(name, torch.arange(len(values)), values)

    @classmethod
    def all_of(cls, store: RowStore, layers: Sequence[int]) -> list[Evaluated]:
        """All layers that were put into a store, by this process or an earlier one."""
        made = {layer: cls(layer) for layer in layers}
        # By place: a file of tensors has an order of its own.
        for name in sorted(store.rows, key=lambda name: name.split("|")[2]):
            kind, layer, _, metric, model = name.split("|", 4)
            metric, _, module = metric.partition("@")
            key, values = Key(int(layer), model, metric, module or RESIDUAL), store.rows[name].finish().values
            each = made[int(layer)]
            if kind == "found":
                value, low, high, n = values[0].tolist()
                each.found.append((key, Estimate(value, low, high, int(n))))
            elif kind == "column":
                each.columns.append((key, values))
            else:
                N, count = values[0].int().tolist()
                each.alike[model] = N, count
        return list(made.values())


@dataclass
class SideBySide:
    """Layers evaluated a few at a time, a thread each, and taken in order from the first one that is asked for.

    Matrices of a few hundred rows are too small to be shared among threads.
    """

    evaluate: Callable[[int], Evaluated]
    layers: Sequence[int]
    threads: int
    running: dict[int, Future[Evaluated]] = field(default_factory=dict)

    def take(self, position: int) -> Evaluated:
        """What the layer at a position gave."""
        if not self.running:
            submit = single_threaded_workers(self.threads).submit
            own = self.layers[position :: shared().count]  # a step each, as they are shared out
            self.running |= {layer: submit(self.evaluate, layer) for layer in own}
        return self.running.pop(self.layers[position]).result()

    def close(self) -> None:
        """Begin no more of them."""
        for future in self.running.values():
            future.cancel()
