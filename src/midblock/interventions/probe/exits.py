"""Early exit: a model read off, or cut off, behind any of its blocks.

Cost: read off, a forward pass and a head's worth of logits at each depth, one layer's states held; cut off at block l,
l + 1 of L blocks a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, device_of, fed
from midblock.data import Batch
from midblock.evaluation import Scores, Targets, check_finite, score
from midblock.trace import Reduction, run_backbone, same_states, watch
from midblock.trace.walk import Asked, Pass, Work

OnExit = Callable[[int, Scores], None]


@dataclass(frozen=True, eq=False)
class Exits:
    """One batch read off one model at several depths: the final norm and the head predict the target tokens there.

    Attributes:
        name: what errors call the model.
        targets: of the batch.
        layers: -1 the embedding, 0…L-1 the blocks.
        vocabulary: number of token ids that count.
        on_exit: given the layer and its scores.
    """

    name: str
    anatomy: Anatomy
    batch: Batch
    targets: Targets
    layers: Sequence[int]
    vocabulary: int
    on_exit: OnExit

    @property
    def last(self) -> int:
        """L − 1, behind which what is read off must be the model's own prediction."""
        return len(self.anatomy) - 1

    def score(self) -> None:
        """One forward pass; each layer is scored as it passes and forgotten.

        States of one layer and one chunk of logits are held at a time.

        Raises:
            MidblockError: a likelihood that is not finite, or a model whose last block, final norm and head do not
                make its own predictions.
        """
        input_ids, where = fed(self.anatomy.embedding, self.batch.input_ids, self.targets.where)
        here = replace(self, targets=self.targets.among(where))
        kept: dict[int, Tensor] = {}

        def on_layer(layer: int, states: Float[Tensor, "B T D"]) -> None:
            picked = here.targets.pick(states)
            if layer == here.last:
                kept[layer] = picked
            here._read(layer, picked)

        with watch(self.anatomy, self.layers, on_layer):
            output = run_backbone(self.anatomy, input_ids)
        if self.last in kept:
            self._check_last(here.targets.pick(output), kept[self.last])

    def work(self) -> Work:
        """The same as work for a walk: the states are gathered at all layers, then read.

        Raises:
            MidblockError: as `score`.
        """
        gather: dict[str, Reduction] = {"exit": lambda states, mask: self.targets.pick(states)}
        nowhere = torch.zeros_like(
            self.batch.input_ids, dtype=torch.bool
        )  # what is not finite is told where it is read
        layers = (*self.layers, self.last + 1)
        (passed,) = yield Asked((Pass(self.name, self.batch, nowhere, layers=layers, reductions=gather),))
        yield Asked()
        for layer in self.layers:
            picked = passed.rows["exit", layer]
            self._read(layer, picked)
            if layer == self.last:
                own = passed.rows["exit", self.last + 1].to(device_of(self.anatomy.head))
                self._check_last(own, picked)

    def _read(self, layer: int, picked: Float[Tensor, "n D"]) -> None:
        """What the final norm and the head make of states behind a layer, at the positions that predict."""
        with torch.inference_mode():
            scores = score(self.anatomy, self.anatomy.normed(picked), self.targets.tokens, self.vocabulary)
        check_finite(scores, self.targets, self.name, layer)
        self.on_exit(layer, scores)

    def _check_last(self, own: Float[Tensor, "n D"], picked: Float[Tensor, "n D"]) -> None:
        """Raise MidblockError unless what the model hands its head is what is read off its last block."""
        with torch.inference_mode():
            read = self.anatomy.normed(picked)
        if not same_states(read, own):
            norm = self.anatomy.names["final_norm"]
            what = f"{self.name}: the final norm {norm}, put on its last block, does not make what its head is given"
            raise MidblockError(what, hint="depth cannot be read off this architecture")


@contextmanager
def cut_off(anatomy: Anatomy, layer: int) -> Iterator[int]:
    """Inside the `with` the model ends behind block `layer`: its final norm and head read that block's states.

    Yields:
        How many blocks were taken away.

    Raises:
        MidblockError: there is no such block.
    """
    total = len(anatomy)
    if not 0 <= layer < total:
        raise MidblockError(f"a model cannot end behind block {layer}; it has 0 to {total - 1}")
    place = anatomy.names["blocks"].rpartition(".")[2]
    whole = anatomy.blocks
    setattr(anatomy.backbone, place, nn.ModuleList(list(whole)[: layer + 1]))
    try:
        yield total - 1 - layer
    finally:
        setattr(anatomy.backbone, place, whole)
