"""`flow`: how gradients and weight change spread over depth in the first steps of fine-tuning.

The training is that of `tune`, for a few steps; before each step of the optimiser the gradients are looked at, and no
model is kept. Cost: the steps, and 4·K·m bytes a tensor for the sketches of K steps. Described in docs/causes/flow.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from midblock.base import LayerRow, LayerTable, MidblockError, divide
from midblock.base.names import name_of
from midblock.checkpoints import LoadSettings, quiet_transformers
from midblock.data import ExampleSet
from midblock.runs.processes import main_process
from midblock.runs.where import Where
from midblock.tuning.flow.rows import summarize_flow, trace_rows
from midblock.tuning.flow.settings import FEW_STEPS, FlowSettings
from midblock.tuning.flow.sketch import GradientTrace
from midblock.tuning.loop.aim import Aim, Learned
from midblock.tuning.loop.course import Course
from midblock.tuning.loop.lesson import train
from midblock.tuning.loop.summary import read_artifact
from midblock.tuning.place.gradients import Gradients
from midblock.tuning.place.methods import method_of


def flow(base: str, data: str | ExampleSet, layers: str = "all", **options: Any) -> LayerTable:
    """Take the first steps of fine-tuning and measure gradients and weight change by depth and part.

    A run that was stopped takes its few steps anew when it is resumed.

    Args:
        base: a model reference.
        data: a dataset reference, or examples already loaded.
        layers: the blocks to train, in any notation of `LayerPlan`, or `auto:RUN` from an analysis.
        **options: fields of `FlowSettings`, `LoadSettings` and `Where`; `output_dir` must be among them.

    Returns:
        gradient_norm, gradient_norm_first, gradient_agreement, gradient_snr and how far weights moved, by layer and
        part; empty on all processes but the first.

    Raises:
        MidblockError: anything the user can mend.

    Example:
        >>> from midblock import flow
        >>> table = flow("start", "sums.jsonl", max_steps=3, output_dir="first-steps")
        >>> table.curve("gradient_norm", "first-steps", "block").layer.tolist()
        [0, 1, 2]
    """
    where, loading, settings = divide({**options, "layers": layers}, Where, LoadSettings, FlowSettings)
    folder = where.needed("flow")
    look = _Look(name_of(folder), settings, GradientTrace(settings.sketch_size, settings.seed))
    with quiet_transformers():
        course = Course.of("flow", base, data, settings=settings, loop=FEW_STEPS, loading=loading)
        # the model is read back once, to see how far weights moved, and goes with what else is partial
        target = folder / "partial" / method_of(settings).folder
        done = train(course, Aim(target=target, results=look.results, on_gradients=look.on_gradients), where)
    if done.outcome is None:
        read_artifact(folder, folder, done.table)  # raises where the summary is gone
    return done.table


@dataclass(frozen=True)
class _Look:
    """What flow sees of a training.

    Attributes:
        name: the run's, which stands for the model in the table.
    """

    name: str
    settings: FlowSettings
    trace: GradientTrace

    def on_gradients(self, gradients: Gradients) -> None:
        if main_process():  # data parallel processes have the same gradients
            self.trace.add(gradients)

    def results(self, learned: Learned) -> tuple[Sequence[LayerRow], Mapping[str, Any]]:
        self._check_moved(learned.moved)
        rows = [*trace_rows(self.trace, self.name, learned.blocks, self.settings.seed), *learned.moved]
        learned.notes.extend(self._notes())
        return rows, summarize_flow(rows, learned.lines, self.settings.method)

    def _check_moved(self, moved: Sequence[LayerRow]) -> None:
        """Refuse a table of zeros.

        Raises:
            MidblockError: no weight differs from the base's.
        """
        if moved and not any(row.value > 0 for row in moved if row.metric == "delta_fro"):
            what = f"no weight moved in {len(self.trace)} steps: the learning rate is below the weights' precision"
            raise MidblockError(what, hint="raise --learning-rate, or --dtype float32")

    def _notes(self) -> list[str]:
        if not self.trace.sketched:
            return []
        size = self.settings.sketch_size
        return [
            f"Gradients of {self.trace.sketched} of {len(self.trace.places)} tensors are compared by sketches of "
            f"{size:,} numbers: cosines between steps are uncertain by up to about {size**-0.5:.3f} for that alone."
        ]
