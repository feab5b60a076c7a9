"""What the loop adds up between two lines of the log, and the line it makes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from midblock.tuning.losses import Scored

Reduce = Callable[[Tensor, str], Tensor]


class Tally:
    """Sums since the last logged step, on this process and its device.

    Attributes:
        loss: of the step that is under way, over its batches.
        taken: steps since the last logged one.
    """

    def __init__(self, device: torch.device, *, anchored: bool, tokens: int, seconds: float) -> None:
        """Begin to count.

        Args:
            anchored: lines have a penalty.
            tokens, seconds: what a resumed run had used before.
        """
        self.anchored = anchored
        # float64 where the device has it
        self.dtype = torch.float32 if device.type == "mps" else torch.float64
        self.device = device
        self.start = time.perf_counter() - seconds
        self.loss: Tensor | float = 0.0
        self.penalty: Tensor | float = 0.0
        self.norms: Mapping[tuple[int, str], float] = {}
        self.tokens = tokens
        self.step = torch.zeros(2, dtype=self.dtype, device=device)  # −ln p and target tokens of the step under way
        self.clear()

    def clear(self) -> None:
        # −ln p, how many target tokens, KL, how many tokens in all, how many target tokens the loss kept
        self.sums = torch.zeros(5, dtype=self.dtype, device=self.device)
        self.losses = torch.zeros((), device=self.device)
        self.taken = 0
        self.diverges = False
        self.chooses = False

    def add(self, scored: Scored, mask: Tensor, kept: Tensor | None = None) -> None:
        """Count a batch, `kept` being the target tokens that the loss counts, where it leaves some out."""
        self.sums[0] -= scored.log_probs.detach().sum(dtype=self.dtype)
        self.sums[1] += len(scored.log_probs)
        self.step[0] -= scored.log_probs.detach().sum(dtype=self.dtype)
        self.step[1] += len(scored.log_probs)
        if scored.divergence is not None:
            self.diverges = True
            self.sums[2] += scored.divergence.detach().sum(dtype=self.dtype)
        self.sums[3] += mask.sum()
        if kept is not None:
            self.chooses = True
            self.sums[4] += kept.sum()

    def add_loss(self, loss: Tensor) -> None:
        """Count the loss of a batch."""
        self.loss = self.loss + loss
        self.losses += loss

    def step_nll(self, reduce: Reduce) -> float:
        """−ln p per target token of the step that is under way, over all processes; counting begins anew.

        Args:
            reduce: as of `carried`.
        """
        total, count = reduce(self.step, "sum").tolist()
        self.step.zero_()
        return total / max(count, 1)

    def carried(self, reduce: Reduce) -> dict[str, Any]:
        """What a run that goes on from here must know: the sums over all processes, each of which calls this.

        Args:
            reduce: a tensor's "sum" or "mean" over processes.
        """
        return {
            "sums": reduce(self.sums, "sum").tolist(),
            "loss": float(reduce(self.losses, "mean")),
            "taken": self.taken,
            "diverges": self.diverges,
            "chooses": self.chooses,
        }

    def go_on(self, carried: Mapping[str, Any], *, main: bool) -> None:
        """Take up what `carried` gave.

        Args:
            main: this process goes on with the sums; the others begin at zero.
        """
        if main:
            self.sums[: len(carried["sums"])] += torch.tensor(carried["sums"], dtype=self.dtype, device=self.device)
        self.losses += carried["loss"]
        self.taken, self.diverges = carried["taken"], carried["diverges"]
        self.chooses = carried.get("chooses", False)

    def line(self, reduce: Reduce, logs: Mapping[str, float]) -> dict[str, Any]:
        """One line of the log, after which counting begins anew.

        Args:
            reduce: as of `carried`.
            logs: what the Trainer logs.
        """
        sums = reduce(self.sums, "sum").tolist()
        self.tokens += int(sums[3])
        line: dict[str, Any] = {"loss": float(reduce(self.losses, "mean")) / max(self.taken, 1)}
        line |= {name: logs[name] for name in ("learning_rate", "grad_norm") if name in logs}
        line["nll"] = sums[0] / max(sums[1], 1)
        if self.diverges:
            line["divergence"] = sums[2] / max(sums[1], 1)
        if self.chooses:
            line["kept"] = sums[4] / max(sums[1], 1)
        if self.anchored:
            line["penalty"] = float(self.penalty)
        line["tokens"] = self.tokens
        line["seconds"] = round(time.perf_counter() - self.start, 3)
        norms = sorted(self.norms.items())
        line["gradient_by_block"] = {str(layer): norm for (layer, part), norm in norms if part == "block"}
        line["gradient_by_part"] = {f"{layer}.{part}": norm for (layer, part), norm in norms if part != "block"}
        self.clear()
        return line
