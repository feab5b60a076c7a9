"""`flow`: how gradients and weight change spread over depth in the first steps of fine-tuning.

The training is that of `tune`, for a few steps; before each step of the optimiser the gradients are looked at, and no
model is kept.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from midblock.base import LayerRow, LayerTable, MidblockError, Progress, RunFolder, Silent, write_json
from midblock.checkpoints import Checkpoint, quiet_transformers, split_options
from midblock.data import ExampleSet
from midblock.tuning.arguments import barrier, main_process
from midblock.tuning.flow_rows import summarize_flow, trace_rows
from midblock.tuning.flow_settings import FlowSettings
from midblock.tuning.gradients import Gradients
from midblock.tuning.outputs import Artifact, save_model
from midblock.tuning.prepared import Prepared
from midblock.tuning.sketch import GradientTrace
from midblock.tuning.summary import read_artifact
from midblock.tuning.training import Trained
from midblock.tuning.tune import PATHS, Tuning, phase


def flow(
    base: str,
    data: str | ExampleSet,
    layers: str = "all",
    *,
    output_dir: Path | str,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    command: str | None = None,
    **options: Any,
) -> LayerTable:
    """Take the first steps of fine-tuning and measure gradients and weight change by depth and part.

    Args:
        base: a model reference.
        data: a dataset reference, or examples already loaded.
        layers: the blocks to train, in any notation of `LayerPlan`, or `auto:RUN` from an analysis.
        output_dir: the run folder to write.
        resume, overwrite: what to do with a folder that is there; a run that was stopped takes its few steps anew.
        progress: told how far it got.
        command: how it was called, recorded.
        **options: fields of `FlowSettings` and `LoadSettings`.

    Returns:
        gradient_norm, gradient_norm_first, gradient_agreement, gradient_snr and how far weights moved, by layer and
        part; empty on all processes but the first.

    Raises:
        MidblockError: anything the user can mend.
    """
    loading, asked = split_options(options)
    settings = FlowSettings.of({**asked, "layers": layers})
    run = Flow(base, data, settings, loading, Path(output_dir).expanduser(), progress or Silent(), command)
    with quiet_transformers():
        return run.run(resume, overwrite, None).table


@dataclass
class Flow(Tuning):
    """A tuning run of a few steps that looks at gradients and keeps no model."""

    verb: ClassVar[str] = "flow"

    settings: FlowSettings
    trace: GradientTrace = field(init=False)

    def __post_init__(self) -> None:
        self.trace = GradientTrace(self.settings.sketch_size, self.settings.seed)

    @property
    def _target(self) -> Path:
        # read back once, to see how far weights moved
        return self.folder / "partial" / PATHS[self.settings.method]

    def _on_gradients(self, gradients: Gradients) -> None:
        if main_process():  # data parallel processes have the same gradients
            self.trace.add(gradients)

    def _read_back(self) -> Artifact:
        return read_artifact(self.folder, self.folder)

    def _save(
        self,
        run: RunFolder,
        prepared: Prepared,
        checkpoint: Checkpoint,
        tokenizer: Any,
        planned: dict[str, Any],
        done: Trained,
    ) -> Artifact:
        with phase(run, "save"):
            save_model(prepared, tokenizer, checkpoint, self._target, "", main_process())
        barrier()
        if not main_process():
            return Artifact(self.folder, self.folder, LayerTable.from_rows([]), (), {})
        lines, blocks = done.log.read(), len(prepared.anatomy)
        moved = self._moved(run, checkpoint, blocks)
        self._check_moved(moved)
        rows = trace_rows(self.trace, self.folder.name, blocks, self.settings.seed) + moved
        table = LayerTable.from_rows(rows)
        table.write(self.folder)
        summary = summarize_flow(rows, lines, self.settings.method)
        write_json(self.folder / "summary.json", summary)
        write_json(self.folder / "plan.json", planned)
        self._note_sketches()
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)  # the Trainer makes it, though it saves none
        run.record["notes"] = self.notes
        run.finish()
        return Artifact(self.folder, self.folder, table, lines, summary)

    def _check_moved(self, moved: list[LayerRow]) -> None:
        """Refuse a table of zeros.

        Raises:
            MidblockError: no weight differs from the base's.
        """
        if moved and not any(row.value > 0 for row in moved if row.metric == "delta_fro"):
            what = f"no weight moved in {len(self.trace)} steps: the learning rate is below the weights' precision"
            raise MidblockError(what, hint="raise --learning-rate, or --dtype float32")

    def _note_sketches(self) -> None:
        if self.trace.sketched:
            size = self.settings.sketch_size
            self.notes.append(
                f"Gradients of {self.trace.sketched} of {len(self.trace.places)} tensors are compared by sketches of "
                f"{size:,} numbers: cosines between steps are uncertain by up to about {size**-0.5:.3f} for that alone."
            )
