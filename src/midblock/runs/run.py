"""`carry_out`: the life of a run, the same for every verb.

Check what is cheap; prepare (read data, load models) and raise what the user can mend; open the folder; work, in timed
phases; write; finish. A verb hands in a draft of its request and what it does; nothing is inherited. Where there are
several processes, the main one alone writes; the others prepare and work with it where a verb shares its work
(training), and else do nothing. Described in docs/run_folder.md, "Writing, stopping, resuming".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from midblock.base import LayerRow, LayerTable, MidblockError, Progress, Silent, write_json
from midblock.base.seal import AWAY, fingerprint
from midblock.runs.folder import RunFolder
from midblock.runs.lenient import mapping
from midblock.runs.lock import check_not_held, held
from midblock.runs.processes import barrier, main_process
from midblock.runs.record import read_config, read_record
from midblock.runs.request import DATA_FILES, Draft, Request
from midblock.runs.sharing import alone, sharing
from midblock.runs.stopping import STOPPING, Stoppable
from midblock.runs.verbs import VERBS
from midblock.runs.where import Where

Write = Callable[[Path], None]


@dataclass(frozen=True)
class Outcome:
    """What a run found.

    Attributes:
        rows: for the LayerTable.
        summary: `summary.json`; holds a `headline`.
        record: what `run.json` learns besides: `models` as they were loaded.
        files: what else goes into the run folder, by name: a function that writes it to the path it is given.
        phase: the name under which the time of writing is recorded.
    """

    rows: Sequence[LayerRow]
    summary: Mapping[str, Any]
    record: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Write] = field(default_factory=dict)
    phase: str = "write"


@dataclass
class Bench:
    """What the work of a run is given.

    Attributes:
        run: the open folder; None where nothing is written.
        progress: told how far it got.
        notes: what a reader of the results must know; the work adds its own.
    """

    run: RunFolder | None
    progress: Progress
    notes: list[str]

    @property
    def folder(self) -> Path:
        """The open folder, for a verb that cannot do without one (`Where.needed`)."""
        if self.run is None:
            raise MidblockError("there is no folder to write", hint="output_dir")
        return self.run.path

    @property
    def record(self) -> dict[str, Any]:
        """What `run.json` holds so far; what is put here and is not saved is lost where nothing is written."""
        return self.run.record if self.run else {}

    @property
    def partial(self) -> Path | None:
        """Folder for the state of an unfinished run, None to keep it in memory."""
        return self.run.partial if self.run else None

    @property
    def owner(self) -> str:
        """Fingerprint of what the run was asked for: what is kept of it unfinished says whose it is (`base.seal`)."""
        if self.run is None:
            return ""
        asked = read_config(self.run.path, hint=AWAY)
        inputs = {name: value for name, value in mapping(self.record, "inputs").items() if name != DATA_FILES}
        return fingerprint(self.record.get("verb"), asked, inputs)

    @contextmanager
    def phase(self, name: str, *, since: float | None = None) -> Iterator[None]:
        """Time a phase for `run.json`; the main process writes it down.

        Args:
            since: when it began (`time.perf_counter`), where that was earlier.
        """
        start = time.perf_counter() if since is None else since
        try:
            yield
        finally:
            if self.run is not None:
                self.run.add_phase(name, time.perf_counter() - start)
                self.save()

    def save(self) -> None:
        """Write `run.json` as it is now."""
        if self.run is not None and main_process():
            self.run.save()


@dataclass(frozen=True)
class Ready:
    """A run that is prepared: nothing that is cheap to find can be wrong any more.

    Attributes:
        request: complete.
        work: gives the outcome.
        facts: what `run.json` says from the start: seed, data, models.
        notes: what a reader must know so far.
        seconds: how long preparing took, where that is to be recorded.
    """

    request: Request
    work: Callable[[Bench], Outcome]
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    seconds: float | None = None


@dataclass(frozen=True)
class Done:
    """A run behind us.

    Attributes:
        table: its numbers; empty on all processes but the main one, and of a verb that leaves none.
        folder: where they were written, None if nowhere.
        outcome: what was found; None where a finished run was read back, or another process makes it.
    """

    table: LayerTable
    folder: Path | None
    outcome: Outcome | None


def carry_out(
    draft: Draft,
    prepare: Callable[[Progress], Ready],
    where: Where,
    *,
    place: Callable[[Path], AbstractContextManager[Path]] = nullcontext,
    together: bool = False,
    share: bool = False,
) -> Done:
    """Carry out one request, or take up the run of it that is there.

    Args:
        draft: what is known of it before anything is read.
        prepare: reads data and models; raises MidblockError where they do not fit. Nothing was written until then.
        where: where results go.
        place: gives the folder to fill, by default the run folder itself; on leaving it stands under that name.
        together: several processes share the work, and preparing it joins them in a group; otherwise a folder is the
            main one's business, and the others do nothing.
        share: several processes share its steps (`runs.sharing`), and what they find is the same in all of them.

    Raises:
        MidblockError: anything the user can mend. Before the folder is opened nothing was written; afterwards what was
            found stays for `--resume`.
    """
    folder = where.folder
    with STOPPING.within(where.max_time), sharing() if share else alone() as among:
        progress = Stoppable(where.progress or Silent())
        if folder is None:
            ready = among.agreed(prepare, progress)
            outcome = among.agreed(ready.work, Bench(None, progress, list(ready.notes)))
            return Done(LayerTable.from_rows(outcome.rows), None, outcome)
        if not together and among.count == 1 and not main_process():
            return Done(LayerTable.from_rows([]), folder, None)
        beside = place is not nullcontext
        looked = partial(_look, folder, draft, where, beside=beside)
        if (finished := among.agreed(looked)) is not None:
            return finished
        with held(folder, beside=beside) if main_process() else nullcontext():
            # it may have changed while nobody held it
            if (finished := among.agreed(partial(_finished, folder, draft, where))) is not None:
                return finished
            ready = among.agreed(prepare, progress)
            with place(folder) as filled:
                asked = where if filled == folder else Where(command=where.command)
                outcome, table = among.agreed(partial(_fill, filled, ready, asked, progress))
    return Done(table, folder, outcome)


def _look(folder: Path, draft: Draft, where: Where, *, beside: bool) -> Done | None:
    """As `_finished`, once nobody else is seen to write there: what lies there would be about to change."""
    if main_process():
        check_not_held(folder, beside=beside)
    return _finished(folder, draft, where)


def _finished(folder: Path, draft: Draft, where: Where) -> Done | None:
    """Read back the finished run that `--resume` asks for; None where there is something to do.

    Raises:
        MidblockError: as `RunFolder.check`.
    """
    earlier = RunFolder.check(folder, draft, where)
    if earlier is None:
        return None
    _check_resumable(draft)
    if earlier.get("status") != "done":
        return None
    run = RunFolder(folder, earlier)
    if run.scratch and main_process():  # killed while it was tidying up
        with held(folder):
            run.drop_scratch()
    return Done(LayerTable.read(folder) if VERBS[draft.known.verb].layered else LayerTable.from_rows([]), folder, None)


def _fill(folder: Path, ready: Ready, where: Where, progress: Progress) -> tuple[Outcome, LayerTable]:
    run, notes = _open(folder, ready, where)
    STOPPING.kept = True
    bench = Bench(run, progress, [*ready.notes, *notes])
    outcome = ready.work(bench)
    if not main_process():
        return outcome, LayerTable.from_rows([])
    run.record |= {**outcome.record, "notes": list(dict.fromkeys(bench.notes))}
    table = LayerTable.from_rows(outcome.rows)
    with bench.phase(outcome.phase):
        for name, write in outcome.files.items():
            write(run.path / name)
        if VERBS[ready.request.verb].layered:
            table.write(run.path)
        write_json(run.path / "summary.json", outcome.summary)
    run.finish()
    return outcome, table


def _open(folder: Path, ready: Ready, where: Where) -> tuple[RunFolder, list[str]]:
    """Open the folder: the main process writes it, the others read what it wrote. Gives notes on its resumption."""
    barrier()  # nobody may look at the folder after the main process has begun to write
    notes: list[str] = []
    if main_process():
        run = RunFolder.open(folder, ready.request, where)
        notes = run.resumption()
        run.record |= ready.facts
        run.record.setdefault("command", where.command or f"midblock.{ready.request.verb}(…)")
        if ready.seconds is not None:
            run.add_phase("prepare", ready.seconds)
        run.save()
    barrier()
    return (run if main_process() else RunFolder(folder, read_record(folder))), notes


def _check_resumable(draft: Draft) -> None:
    """Raise MidblockError for models in memory, which nothing says are those of the earlier run."""
    for name in draft.known.in_memory:
        what = f"{name} is a model in memory, so an earlier run cannot be resumed"
        raise MidblockError(what, hint="--overwrite measures it anew")
