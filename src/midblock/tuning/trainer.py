"""The one training loop: TRL's SFTTrainer with our losses, the anchor's gradient, and checks that it does what it says.

TRL, accelerate and transformers keep what they do well: devices, precision, schedules, checkpoints, trackers. Ours are
the loss (on target tokens only, divided once over the whole effective batch) and what happens between the last
backward pass of a step and the optimiser: the anchor's closed-form gradient, and looking at the gradients.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from midblock.base import MidblockError
from midblock.tuning.anchor import Anchor
from midblock.tuning.fingerprints import Untouched
from midblock.tuning.gradients import Gradients
from midblock.tuning.losses import LOSSES, Objective, Scored


@dataclass(frozen=True)
class Watch:
    """What the loop computes with, and whom it tells.

    Attributes:
        objective: loss and its constants.
        gradients: of the trained parameters.
        anchor: makes the anchor; None where nothing is held on to.
        on_line: told the line of each logged step, on every process.
        on_gradients: called before each step of the optimiser, on every process, before the anchor adds its gradient.
        tokens, seconds: what a resumed run had used before.
    """

    objective: Objective
    gradients: Gradients
    anchor: Callable[[], Anchor] | None = None
    on_line: Callable[[dict[str, Any]], None] = lambda line: None
    on_gradients: Callable[[Gradients], None] = lambda gradients: None
    tokens: int = 0
    seconds: float = 0.0


def make_trainer(model: nn.Module, arguments: Any, watch: Watch, **parts: Any) -> Any:
    """Build the trainer.

    Args:
        model: prepared for training, inside `scoring`.
        arguments: an `SFTConfig`.
        **parts: `train_dataset`, `data_collator`, `processing_class`, `callbacks`.
    """
    from transformers.trainer_callback import PrinterCallback, ProgressCallback
    from trl import SFTTrainer

    class DepthTrainer(SFTTrainer):
        tally: Tally
        anchor: Anchor | None = None
        untouched: Untouched | None = None
        looked = False
        advance: Callable[[float], None] = staticmethod(lambda steps: None)

        def compute_loss(
            self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            answer = model(**inputs, score=True)
            names = ("log_probs", "row", "reference", "divergence")
            scored = Scored(**{name: answer.get(name) for name in names})
            total, count = LOSSES[watch.objective.loss].function(scored, watch.objective)
            self.tally.add(scored, inputs["attention_mask"])
            if num_items_in_batch is None:
                return total / count
            # over the tokens of all devices; whatever averages gradients over devices divides by their number
            return total / num_items_in_batch * self.accelerator.num_processes

        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            loss = super().training_step(*args, **kwargs)
            self.tally.loss = self.tally.loss + loss
            if self.accelerator.sync_gradients:
                self.before_optimizer()
            return loss

        def hold_on(self) -> None:
            """Take the frozen tensors' fingerprints and make the anchor, once the parameters are where they stay."""
            if self.untouched is None:
                self.untouched = Untouched.of(watch.gradients.model, set(watch.gradients.trained))
                self.anchor = watch.anchor() if watch.anchor is not None else None

        def before_optimizer(self) -> None:
            """Between the last backward pass of a step and the optimiser."""
            self.hold_on()
            watch.on_gradients(watch.gradients)
            if self.anchor is not None:
                self.tally.penalty = self.anchor.add_gradient()
            squares = watch.gradients.squares()
            loss, norm = float(self.tally.loss), sum(squares.values()) ** 0.5
            if not math.isfinite(loss) or not math.isfinite(norm):
                raise MidblockError(
                    f"step {self.state.global_step + 1} was not taken: its loss is {loss:.4g}, its gradient's norm "
                    f"{norm:.4g}",
                    hint="lower --learning-rate or raise --warmup-steps; checkpoints until here are kept",
                )
            if not self.looked:
                watch.gradients.check_first(squares)
                self.looked = True
            self.tally.loss = 0.0
            self.tally.norms = watch.gradients.by_place(squares)

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if "loss" in logs:
                sums = self.accelerator.reduce(self.tally.sums, "sum").tolist()
                line = {"step": self.state.global_step, "epoch": self.state.epoch, **self.tally.line(sums, logs)}
                logs |= {key: line[key] for key in ("nll", "penalty", "divergence") if key in line}
                watch.on_line(line)
            super().log(logs, start_time)

    trainer: Any = DepthTrainer(cast(Any, model), arguments, **parts)
    trainer.tally = Tally(watch, trainer.args.device)
    # the loss is divided by all target tokens of a step, so the loop must count them first
    trainer.model_accepts_loss_kwargs = True
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(_observer(watch.gradients, trainer))
    return trainer


def _observer(gradients: Gradients, trainer: Any) -> Any:
    """A callback that moves the progress on, and looks at the adapters after the first step at a rate above zero."""
    from transformers import TrainerCallback

    class Observer(TrainerCallback):
        waiting = True
        taken = 0

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.taken += 1
            if self.waiting and given["optimizer"].param_groups[0]["lr"] > 0:
                self.waiting = False
                gradients.check_moved()

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            trainer.advance(1)
            if state.global_step >= state.max_steps:
                control.should_log = True  # else the log would end before the run does

        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if self.waiting and self.taken == state.global_step > 0:
                what = f"the learning rate was zero in each of {self.taken} steps: nothing was trained"
                raise MidblockError(what, hint="fewer --warmup-steps, or more steps")

    return Observer()


class Tally:
    """Sums since the last logged step, on this process and its device."""

    def __init__(self, watch: Watch, device: torch.device) -> None:
        self.anchored = watch.anchor is not None
        # float64 where the device has it
        self.dtype = torch.float32 if device.type == "mps" else torch.float64
        self.device = device
        self.start = time.perf_counter() - watch.seconds
        self.loss: Tensor | float = 0.0
        self.penalty: Tensor | float = 0.0
        self.norms: dict[tuple[int, str], float] = {}
        self.tokens = watch.tokens
        self.clear()

    def clear(self) -> None:
        # −ln p, how many target tokens, KL, how many tokens in all
        self.sums = torch.zeros(4, dtype=self.dtype, device=self.device)
        self.diverges = False

    def add(self, scored: Scored, mask: Tensor) -> None:
        self.sums[0] -= scored.log_probs.detach().sum(dtype=self.dtype)
        self.sums[1] += len(scored.log_probs)
        if scored.divergence is not None:
            self.diverges = True
            self.sums[2] += scored.divergence.detach().sum(dtype=self.dtype)
        self.sums[3] += mask.sum()

    def line(self, sums: list[float], logs: dict[str, float]) -> dict[str, Any]:
        """One line of the log: `sums` are over all processes."""
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
