"""What looks on while the Trainer trains: progress, when to stop, and whether adapters move at all.

transformers takes a second to import, so this module is loaded only where training begins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from midblock.base import MidblockError
from midblock.tuning.loop.watch import Watch


class Complete(Exception):  # noqa: N818 nothing went wrong
    """The checkpoint that training goes on from is that of its last step."""


class Observer(TrainerCallback):
    """Moves the progress on, ends training where that is due, and looks at adapters after the first step that moves.

    Attributes:
        begun: what the checkpoint holds is loaded.
        stopped: training ended before its last step, as it was asked to.
    """

    def __init__(self, watch: Watch, stop_due: Callable[[], bool], tell_saved: Callable[[], None]) -> None:
        self.watch = watch
        self.stop_due = stop_due
        self.tell_saved = tell_saved
        self.waiting = True
        self.taken = 0
        self.begun = self.stopped = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Leave the Trainer where no step is left, for it always takes one.

        Raises:
            Complete: the plan is done.
        """
        if state.global_step >= state.max_steps:
            self.begun = True
            raise Complete

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Know that the random state, which the Trainer reads last, is read."""
        self.begun = True

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Look at the adapters, and let what goes beside the optimiser take its step.

        Raises:
            MidblockError: an adapter did not move.
        """
        self.taken += 1
        if self.watch.companion is not None:
            self.watch.companion.after_step(given["optimizer"])
        if self.waiting and given["optimizer"].param_groups[0]["lr"] > 0:
            self.waiting = False
            self.watch.gradients.check_moved()

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Say that a step is behind, have the last one logged, and stop where that is due."""
        self.watch.advance(1)
        if state.global_step >= state.max_steps:
            control.should_log = True  # else the log would end before the run does
        elif self.stop_due():
            self.stopped = control.should_training_stop = True
            control.should_save = control.should_save or args.save_strategy == "steps"

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Have the checkpoint sealed."""
        self.tell_saved()

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Refuse a run at a rate of zero.

        Raises:
            MidblockError: nothing was trained.
        """
        if self.waiting and not self.stopped and self.taken == state.global_step > 0:
            what = f"the learning rate was zero in each of {self.taken} steps: nothing was trained"
            raise MidblockError(what, hint="fewer --warmup-steps, or more steps")
