"""What the loop adds up between two lines of the log, and the line it makes of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from midblock.tuning.losses import Scored


class Tally:
    """Sums since the last logged step, on this process and its device."""

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
        self.clear()

    def clear(self) -> None:
        # −ln p, how many target tokens, KL, how many tokens in all
        self.sums = torch.zeros(4, dtype=self.dtype, device=self.device)
        self.diverges = False

    def add(self, scored: Scored, mask: Tensor) -> None:
        """Count a batch."""
        self.sums[0] -= scored.log_probs.detach().sum(dtype=self.dtype)
        self.sums[1] += len(scored.log_probs)
        if scored.divergence is not None:
            self.diverges = True
            self.sums[2] += scored.divergence.detach().sum(dtype=self.dtype)
        self.sums[3] += mask.sum()

    def line(self, sums: Sequence[float], logs: Mapping[str, float]) -> dict[str, Any]:
        """One line of the log, after which counting begins anew.

        Args:
            sums: over all processes.
            logs: what the Trainer logs.
        """
        self.tokens += int(sums[3])
        line: dict[str, Any] = {name: logs[name] for name in ("loss", "learning_rate", "grad_norm") if name in logs}
        line["nll"] = sums[0] / max(sums[1], 1)
        if self.diverges:
            line["divergence"] = sums[2] / max(sums[1], 1)
        if self.anchored:
            line["penalty"] = float(self.penalty)
        line["tokens"] = self.tokens
        line["seconds"] = round(time.perf_counter() - self.start, 3)
        norms = sorted(self.norms.items())
        line["gradient_by_block"] = {str(layer): norm for (layer, part), norm in norms if part == "block"}
        line["gradient_by_part"] = {f"{layer}.{part}": norm for (layer, part), norm in norms if part != "block"}
        self.clear()
        return line
