"""The one training loop: TRL's SFTTrainer with our losses, the anchor's gradient, and checks that it does what it says.

TRL, accelerate and transformers keep what they do well: devices, precision, schedules, checkpoints, trackers. Ours are
the loss (on target tokens only, divided once over the whole effective batch) and what happens between the last
backward pass of a step and the optimiser: the anchor's closed-form gradient, looking at the gradients, and what a
method does beside the optimiser. Described in docs/tuning/README.md; several processes in docs/tuning/distributed.md.

TRL is an extra and takes seconds to import, so this module is loaded only where training begins.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import SFTTrainer

from midblock.base import MidblockError
from midblock.tuning.anchor.anchor import Anchor
from midblock.tuning.loop.fingerprints import Untouched
from midblock.tuning.loop.observer import Observer
from midblock.tuning.loop.rates import first_factor
from midblock.tuning.loop.resume import PREFIX
from midblock.tuning.loop.tally import Tally
from midblock.tuning.loop.watch import Watch
from midblock.tuning.losses import Scored, loss_of
from midblock.tuning.place.gradients import plain_name

SCORES = ("log_probs", "row", "reference", "divergence", "entropy")


class DepthTrainer(SFTTrainer):
    """TRL's trainer under a watch.

    Attributes:
        anchor: what holds on to the pretrained weights; None until `hold_on`, and where nothing does.
        untouched: fingerprints of the frozen tensors; None until `hold_on`.
        unreached: parameters that were to be trained and that no gradient came to.
    """

    def __init__(self, model: nn.Module, arguments: Any, watch: Watch, **parts: Any) -> None:
        """Build the trainer.

        Args:
            model: prepared for training, inside `scoring`.
            arguments: an `SFTConfig`.
            **parts: `train_dataset`, `data_collator`, `processing_class`.
        """
        super().__init__(cast(Any, model), arguments, **parts)
        self.watch = watch
        self.tally = Tally(
            self.args.device, anchored=watch.anchor is not None, tokens=watch.tokens, seconds=watch.seconds
        )
        self.anchor: Anchor | None = None
        self.untouched: Untouched | None = None
        self.looked = False
        self.unreached: tuple[str, ...] = ()
        # the loss is divided by all target tokens of a step, so the loop must count them first
        self.model_accepts_loss_kwargs = True
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.observer = Observer(watch, self.stop_due, self.tell_saved)
        self.add_callback(self.observer)
        if watch.carried:
            self.tally.go_on(watch.carried["tally"], main=self.accelerator.is_main_process)
            self.unreached = tuple(watch.carried["unreached"])

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Our loss, from scores that the model's forward pass gives."""
        answer = model(**inputs, score=True)
        scored = Scored(**{name: answer.get(name) for name in SCORES})
        objective = self.watch.objective
        loss = loss_of(objective)
        total, count = loss.function(scored, objective)
        self.tally.add(scored, inputs["attention_mask"], loss.kept and loss.kept(scored, objective))
        if num_items_in_batch is None:
            return total / count
        # over the tokens of all devices; whatever averages gradients over devices divides by their number
        return total / num_items_in_batch * self.accelerator.num_processes

    def create_optimizer(self, model: Any = None) -> Any:
        """The Trainer's optimiser, each depth at its own rate where the course wants that."""
        new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if new and self.watch.rates is not None:
            self.watch.rates.apply(optimizer, self.watch.gradients)
        return optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """A forward and backward pass; after the last one of a step, what comes before the optimiser."""
        loss = super().training_step(*args, **kwargs)
        self.tally.add_loss(loss)
        if self.accelerator.sync_gradients:
            self.before_optimizer()
        return loss

    def hold_on(self) -> None:
        """Take the frozen tensors' fingerprints and make the anchor, once the parameters are where they stay."""
        if self.untouched is None:
            gradients, anchor = self.watch.gradients, self.watch.anchor
            self.untouched = Untouched.of(gradients.model, set(gradients.trained))
            self.anchor = anchor() if anchor is not None else None

    def before_optimizer(self) -> None:
        """Between the last backward pass of a step and the optimiser.

        Raises:
            MidblockError: a loss or a gradient that is no number, a planned module without a gradient.
        """
        self.hold_on()
        gradients = self.watch.gradients
        self.watch.on_gradients(gradients)
        if self.anchor is not None:
            self.tally.penalty = self.anchor.add_gradient()
        squares = gradients.squares()
        self._check_finite(float(self.tally.loss), sum(squares.values()) ** 0.5)
        if not self.looked:
            self._check_kept()
            gradients.check_first(squares)
            self.looked, self.unreached = True, tuple(map(plain_name, gradients.unreached))
        self.tally.loss = 0.0
        self.tally.taken += 1
        self.tally.norms = gradients.by_place(squares)
        if self.watch.companion is not None:
            self.watch.companion.before_step(self.tally.step_nll(self.accelerator.reduce))

    def _check_kept(self) -> None:
        if self.tally.chooses and not self.accelerator.reduce(self.tally.sums[4], "sum") > 0:
            raise MidblockError(
                f"the loss {self.watch.objective.loss} leaves out every target token of the first step",
                hint="raise --stm-threshold",
            )

    def _check_finite(self, loss: float, norm: float) -> None:
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise MidblockError(
                f"step {self.state.global_step + 1} was not taken: its loss is {loss:.4g}, its gradient's norm "
                f"{norm:.4g}",
                hint="lower --learning-rate or raise --warmup-steps; checkpoints until here are kept",
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Tell the line of a logged step, and trackers what they take of it."""
        if "learning_rate" in logs:
            logs["learning_rate"] /= first_factor(self.optimizer)  # the course's own rate
        if "loss" in logs:
            # the Trainer's own mean forgets, where a run goes on, the steps behind the last line
            line = {
                "step": self.state.global_step,
                "epoch": self.state.epoch,
                **self.tally.line(self.accelerator.reduce, logs),
            }
            if self.watch.companion is not None:
                line |= self.watch.companion.line()
            logs |= {key: line[key] for key in ("loss", "nll", "penalty", "divergence") if key in line}
            self.watch.on_line(line)
        super().log(logs, start_time)

    def stop_due(self) -> bool:
        """Whether this process or another one was asked to stop."""
        due = self.watch.stop_due()
        if self.accelerator.num_processes > 1:
            asked = torch.tensor(float(due), device=self.args.device)
            due = bool(self.accelerator.reduce(asked, "sum") > 0)
        return due

    def tell_saved(self) -> None:
        """Have a checkpoint sealed, once every process has written its part."""
        carried = {"tally": self.tally.carried(self.accelerator.reduce), "unreached": list(self.unreached)}
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            if self.watch.companion is not None:
                folder = Path(str(self.args.output_dir)) / f"{PREFIX}{self.state.global_step}"
                carried["companion"] = self.watch.companion.save(folder)
            self.watch.on_saved(self.state.global_step, carried)

    def close(self) -> None:
        """End a training that had no step left: say so to trackers, and take what frozen tensors are compared with."""
        self.hold_on()
        self.is_in_train = False
        self.callback_handler.on_train_end(self.args, self.state, self.control)
