"""What the training loop computes with beside the model, and whom it tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from midblock.tuning.anchor.anchor import Anchor
from midblock.tuning.companion import Companion
from midblock.tuning.loop.rates import DepthRates
from midblock.tuning.losses import Objective
from midblock.tuning.place.gradients import Gradients


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What the loop computes with, and whom it tells.

    Attributes:
        objective: loss and its constants.
        gradients: of the trained parameters.
        rates: the learning rate's factor by depth; None where it is the same everywhere.
        anchor: makes the anchor; None where nothing is held on to.
        companion: what goes through training beside the optimiser; None where nothing does.
        on_line: told the line of each logged step, on every process.
        on_gradients: called before each step of the optimiser, on every process, before the anchor adds its gradient.
        advance: told that a step is behind.
        on_saved: told, in the main process, of which step every part of a checkpoint is written, and what the loop
            carries beside it.
        stop_due: asked behind each step; where it is true in any process, a checkpoint is saved and all of them stop.
        carried: what `on_saved` was told of the checkpoint that this run goes on from.
        tokens, seconds: what a resumed run had used before.
    """

    objective: Objective
    gradients: Gradients
    rates: DepthRates | None = None
    anchor: Callable[[], Anchor] | None = None
    companion: Companion | None = None
    on_line: Callable[[dict[str, Any]], None] = lambda line: None
    on_gradients: Callable[[Gradients], None] = lambda gradients: None
    advance: Callable[[float], None] = lambda steps: None
    on_saved: Callable[[int, Mapping[str, Any]], None] = lambda step, carried: None
    stop_due: Callable[[], bool] = lambda: False
    carried: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0
