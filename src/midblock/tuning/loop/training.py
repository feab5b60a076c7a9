"""From a prepared model to a trained one: the frozen prefix, the loss in the forward pass, the loop, the log."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError

from midblock.base import MidblockError, Progress
from midblock.base.files import write_failure
from midblock.checkpoints import LoadSettings
from midblock.runs.lending import memory_told
from midblock.runs.processes import barrier, main_process
from midblock.runs.stopping import STOPPING
from midblock.tuning.companion import Companion
from midblock.tuning.loop.arguments import first_line
from midblock.tuning.loop.examples import Collator, TrainingExamples, check_loss, runs_here
from midblock.tuning.loop.held_weights import HeldWeights
from midblock.tuning.loop.log_file import LogFile
from midblock.tuning.loop.rates import DepthRates
from midblock.tuning.loop.references import find_reference
from midblock.tuning.loop.resume import PREFIX, Waypoint, check_whole
from midblock.tuning.loop.schedule import epochs_of, schedule_of
from midblock.tuning.loop.scoring import scoring
from midblock.tuning.loop.seal import SEAL, broken, seal
from midblock.tuning.loop.watch import Watch
from midblock.tuning.losses import loss_of
from midblock.tuning.place.gradients import Gradients
from midblock.tuning.place.methods import method_of
from midblock.tuning.place.prepared import Prepared
from midblock.tuning.prefix.prefix import FrozenPrefix, reason_not_exact
from midblock.tuning.prefix.store import PrefixStore
from midblock.tuning.settings import CourseSettings, Loop

# what the Trainer, torch and PEFT raise for a checkpoint that is not one of this run's
UNLOADABLE = (
    OSError, SafetensorError, pickle.UnpicklingError, KeyError, IndexError, ValueError, TypeError, AttributeError,
    RuntimeError, EOFError,
)  # fmt: skip
LESS_MEMORY = "lower --per-device-train-batch-size, or --gradient-checkpointing"


@dataclass(frozen=True)
class Trained:
    """What training left behind besides the weights.

    Attributes:
        log: its lines.
        prefix: the frozen blocks, with their counts.
        compared: how many frozen tensors were found unchanged to the bit.
        unreached: parameters that were to be trained and that no gradient came to.
        unsealed: it went on from a checkpoint whose files could not be compared with checksums.
    """

    log: LogFile
    prefix: FrozenPrefix
    compared: int
    unreached: tuple[str, ...] = ()
    unsealed: bool = False


@dataclass(frozen=True, kw_only=True)
class Training:
    """Everything the loop needs.

    Attributes:
        folder: the run folder; checkpoints and `log.jsonl` go there.
        loop: how long it goes on.
        held: pretrained weights to hold on to.
        store: where the frozen prefix's output is kept, or None.
        arguments: an SFTConfig.
        on_gradients: looks at the gradients before each step of the optimiser.
        stop_due: asked behind each step, in every process; where it is true in any of them, training stops behind a
            checkpoint (where any are saved), and `stop` is called.
        stop: raises what says so.
    """

    folder: Path
    prepared: Prepared
    examples: TrainingExamples
    settings: CourseSettings
    loop: Loop
    loading: LoadSettings
    held: HeldWeights
    store: PrefixStore | None
    arguments: Any
    tokenizer: Any
    progress: Progress
    on_gradients: Callable[[Gradients], None] = lambda gradients: None
    stop_due: Callable[[], bool] = STOPPING.due
    stop: Callable[[], NoReturn] = STOPPING.stop

    def run(self) -> Trained:
        """Train, from the last whole checkpoint if there is one, and check that frozen tensors stayed what they were.

        Raises:
            MidblockError: a loss that is no number, a planned module without a gradient, no memory, no disk space.
        """
        found = Waypoint.last(self.checkpoints) if self.loop.saves else None
        barrier()
        companion = self._companion()
        if found is not None and main_process():
            found.check(self._steps)
        step = found.step if found else 0
        log = LogFile(self.folder / "log.jsonl")
        if main_process():
            log.check(step, self.loop.logging_steps)
        earlier = log.cut(step) if main_process() else ()
        prepared = self.prepared
        reference = find_reference(prepared, self.settings, self.loading, self.arguments.device)
        if reference is not None and reference.adapted is None:
            check_loss(str(self.settings.reference), reference.anatomy.model, self.examples)
        prefix = FrozenPrefix(prepared.anatomy, prepared.first, self.store)
        with ExitStack() as surgery:
            surgery.enter_context(prefix.installed())
            top_k = self.settings.eaft_top_k if loss_of(self.settings).entropy else 0
            surgery.enter_context(scoring(prepared.causal, prepared.anatomy, prefix, reference, top_k))
            waiting = not runs_here(prepared.causal)
            trainer = self._trainer(log, earlier, found, companion)
            if waiting and runs_here(prepared.causal):
                check_loss("base", prepared.causal, self.examples)
            if found is not None and not found.sealed and not trainer.is_fsdp_enabled:
                check_whole(found.path)
            if companion is not None:
                self._take_up(trainer, companion, found)
            self._hold_on(trainer, resumed=found is not None)
            trainer.watch.advance(step)
            self._loop(trainer, found)
            compared = trainer.untouched.check(self.prepared.model)
        self._check_count(trainer, log)
        return Trained(log, prefix, compared, trainer.unreached, unsealed=found is not None and not found.sealed)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def _steps(self) -> int:
        """How many the plan has."""
        return schedule_of(self.settings, self.loop, self.examples)["steps"]

    def _check_count(self, trainer: Any, log: LogFile) -> None:
        """Refuse a run that took another number of steps than were planned.

        Raises:
            MidblockError: with both.
        """
        taken = {trainer.state.global_step, *(line["step"] for line in log.read()[-1:])}
        if taken != {self._steps}:
            what = f"the plan has {self._steps} steps, and training ended with step {max(taken)}"
            raise MidblockError(what, hint="--overwrite begins again")

    def _companion(self) -> Companion | None:
        scratch = self.folder / "partial" / "companion"
        return self.prepared.trainable.companion(self._steps, self.arguments.device, scratch)

    def _trainer(
        self,
        log: LogFile,
        earlier: tuple[Mapping[str, Any], ...],
        found: Waypoint | None,
        companion: Companion | None,
    ) -> Any:
        from midblock.tuning.loop.trainer import DepthTrainer

        watch = Watch(
            objective=self.settings,
            gradients=Gradients(self.prepared.model, self.prepared.anatomy.projection_of),
            rates=DepthRates.of(self.settings.lr_by_depth, len(self.prepared.anatomy)),
            anchor=self.held.anchor(self.prepared),
            companion=companion,
            on_line=log.append if main_process() else lambda line: None,
            on_gradients=self.on_gradients,
            advance=self.progress.phase("tuning", self._steps),
            on_saved=self._seal,
            stop_due=self.stop_due,
            carried=found.carried if found else {},
            tokens=earlier[-1]["tokens"] if earlier else 0,
            seconds=earlier[-1]["seconds"] if earlier else 0.0,
        )
        return DepthTrainer(
            self.prepared.model,
            self.arguments,
            watch,
            train_dataset=self.examples.dataset(),
            data_collator=Collator(self.tokenizer.pad_token_id or 0),
            processing_class=_with_padding(self.tokenizer),
        )

    def _hold_on(self, trainer: Any, *, resumed: bool) -> None:
        """Make anchor and fingerprints while the weights are the base's; FSDP, which moves them, makes that wait."""
        if not trainer.is_fsdp_enabled:
            trainer.hold_on()
        elif resumed and self.settings.anchor_scope == "subspace" and not method_of(self.settings).base_stays:
            hint = "--overwrite begins again; --anchor-scope block can be resumed"
            raise MidblockError("under accelerate's FSDP the subspace anchor cannot be resumed", hint=hint)

    def _take_up(self, trainer: Any, companion: Companion, found: Waypoint | None) -> None:
        """Give a companion back what a checkpoint holds of it; FSDP would move what it reads."""
        if trainer.is_fsdp_enabled:
            raise MidblockError(f"{method_of(self.settings).title} needs whole weights, which FSDP splits")
        if found is not None:
            if "companion" not in found.carried:
                raise broken(found.path / SEAL, found.path)
            companion.load(found.path, found.carried["companion"])

    def _seal(self, step: int, carried: Mapping[str, Any]) -> None:
        seal(self.checkpoints / f"{PREFIX}{step}", carried)

    def _loop(self, trainer: Any, found: Waypoint | None) -> None:
        from midblock.tuning.loop.observer import Complete

        observer = trainer.observer
        try:
            with memory_told(LESS_MEMORY), STOPPING.stoppable():
                trainer.train(resume_from_checkpoint=str(found.path) if found else None)
        except Complete:
            trainer.close()
        except UNLOADABLE as error:
            if found is not None and not observer.begun:
                what = f"{found.path} cannot be loaded: {first_line(error)}"
                raise MidblockError(what, hint="remove it, and --resume goes on from the one before it") from error
            if isinstance(error, OSError | SafetensorError):
                raise write_failure(self.checkpoints, error) from error
            raise
        if observer.stopped:
            self.stop()


def open_store(
    prepared: Prepared,
    examples: TrainingExamples,
    settings: CourseSettings,
    loop: Loop,
    *,
    folder: Path,
    key: str,
    notes: list[str],
) -> PrefixStore | None:
    """The cache of the frozen prefix, where it is wanted and exact.

    Args:
        folder: where it would lie.
        key: names the weights and the data.
        notes: gets the reason where there is none.

    Raises:
        MidblockError: it is asked for and would not be exact, or the disk is full.
    """
    asked = loop.prefix_cache
    if asked == "off" or prepared.first == 0 or (asked == "auto" and epochs_of(settings, loop, len(examples)) <= 1):
        return None
    reason = reason_not_exact(prepared.anatomy, prepared.first, longest=max(examples.lengths))
    if reason is not None:
        if asked == "on":
            raise MidblockError(f"the frozen prefix cannot be cached: {reason}", hint="--prefix-cache off")
        notes.append(f"The frozen prefix is not cached: {reason}.")
        return None
    whole = repr((key, settings.max_length, settings.template, prepared.first))
    dtype = next(prepared.anatomy.embedding.parameters()).dtype
    return PrefixStore.open(folder, examples.lengths, prepared.anatomy.width, dtype, whole)


def _with_padding(tokenizer: Any) -> Any:
    """The Trainer wants a padding token to be named, though our batches are padded already."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer
