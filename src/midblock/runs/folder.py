"""The run folder: where a verb writes, how it is resumed, and what is recorded about how it was made.

Files are written under another name and renamed. A run is the same when verb, settings and the fingerprints of models
and data are; what differs is named. Described, as a contract, in docs/run_folder.md.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from midblock.base import MidblockError, replace_atomically, write_json
from midblock.base.files import write_failure
from midblock.runs.lenient import as_number, mapping
from midblock.runs.lock import LOCK, held, occupied
from midblock.runs.record import CONFIG, RECORD, read_config, read_record
from midblock.runs.request import DATA_FILES, Draft, Request
from midblock.runs.surroundings import peak_memory, surroundings
from midblock.runs.verbs import VERBS
from midblock.runs.where import Where

OPENING = "opening"  # what lay there is being removed and settings are not written yet: nothing to go on with
FORMAT = 2  # of what an unfinished run keeps; raise it when an older one cannot be gone on with


@dataclass(frozen=True)
class Standing:
    """What lies in a folder, seen from a request.

    Attributes:
        record: `run.json` of the run that is there; {} where none is.
        differences: settings that are not the request's, as "seed: 0 then, 1 now"; another verb among them.
        changed: what is read and is not what it was then.
        empty: nothing lies there that a run could lose.
    """

    record: Mapping[str, Any]
    differences: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    empty: bool = False

    @property
    def same(self) -> bool:
        """It is a run of this very request."""
        return bool(self.record) and not self.differences and not self.changed

    @property
    def finished(self) -> bool:
        return self.same and self.record.get("status") == "done"

    @property
    def resumable(self) -> bool:
        """A run of this request that was stopped, of a verb that can go on."""
        verb = VERBS.get(str(self.record.get("verb")))
        return self.same and not self.finished and verb is not None and verb.resumable


@dataclass
class RunFolder:
    """A folder being filled by one run; `run.json` inside says how far it got.

    Attributes:
        path: the folder.
        record: what `run.json` holds; `save` writes it.
    """

    path: Path
    record: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, request: Request, where: Where) -> RunFolder:
        """Create the folder, or take up the run of the same request that is there.

        Raises:
            MidblockError: as `check`.
        """
        earlier = cls.check(path, Draft(request), where)
        if earlier is not None:
            earlier["inputs"] = {**mapping(earlier, "inputs"), **request.inputs}
            run = cls(path, earlier)
            if not run.done:
                run.save()
            return run
        began = {"verb": request.verb, "status": OPENING, "format": FORMAT, "inputs": dict(request.inputs)}
        run = cls(path, {**began, **surroundings()})
        run.save()  # first, so that a folder left by a kill is known as ours
        _empty(path)
        with replace_atomically(path / CONFIG) as temporary:
            temporary.write_text(request.as_yaml(), encoding="utf-8")
        run.record["status"] = "running"
        run.save()
        return run

    @staticmethod
    def check(path: Path, draft: Draft, where: Where) -> dict[str, Any] | None:
        """Raise what `open` would raise, and change nothing.

        Returns:
            The record of the run that `--resume` would continue; None where one would begin.

        Raises:
            MidblockError: when the folder exists and neither `resume` nor `overwrite` is asked for, is not a run of
                ours, was made with other settings or from other inputs (the message names them), or holds what is read.
        """
        if not _in_use(path):
            return None
        if where.resume:
            return _resumable(path, draft)
        if not where.overwrite:
            raise MidblockError(f"{path} exists already", hint=_ways(path, draft))
        _check_replaceable(path, draft)
        return None

    @property
    def done(self) -> bool:
        return self.record.get("status") == "done"

    @property
    def partial(self) -> Path:
        """Folder for the state of an unfinished run; `finish` removes it."""
        return self.path / "partial"

    def save(self) -> None:
        write_json(self.path / RECORD, self.record)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record wall time and peak memory of a phase; a resumed phase adds to its earlier time."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add_phase(name, time.perf_counter() - start)
            self.save()

    def add_phase(self, name: str, seconds: float) -> None:
        """Record a phase that was timed elsewhere."""
        phases = dict(mapping(self.record, "phases"))
        before = as_number(mapping(phases, name).get("seconds"))
        seconds += before if math.isfinite(before) else 0.0
        phases[name] = {"seconds": round(seconds, 3), "peak_memory_mb": round(peak_memory() / 2**20)}
        self.record["phases"] = phases

    def finish(self) -> None:
        """Mark the run as whole and drop its partial state."""
        self.record["status"] = "done"
        self.save()
        self.drop_scratch()

    @property
    def scratch(self) -> list[Path]:
        """What lies there and is not needed once the run is whole; a kill may leave it in a finished run."""
        return [place for name in VERBS[self.record["verb"]].scratch if (place := self.path / name).is_dir()]

    def drop_scratch(self) -> None:
        for place in self.scratch:
            shutil.rmtree(place, ignore_errors=True)

    def resumption(self) -> list[str]:
        """Notes on who began the run that this process goes on with, where other versions were at work."""
        before, now = mapping(self.record, "versions"), surroundings()["versions"]
        other = [f"{name} {before.get(name)} then, {now[name]} now" for name in now if before.get(name) != now[name]]
        return [f"This run was begun with other versions: {', '.join(other)}."] if other else []


def standing(path: Path | str, draft: Draft) -> Standing:
    """Look at a folder: whose run lies in it, and is it this request's?

    Raises:
        MidblockError: it is a file, or a run whose config.yaml is broken.
    """
    path, request = Path(path), draft.known
    if not _in_use(path):
        return Standing({}, empty=True)
    try:
        record = read_record(path)
    except MidblockError:
        return Standing({}, (f"{path} is no run folder",))
    if record.get("status") == OPENING:
        return Standing({}, empty=True)
    if record.get("verb") != request.verb:
        return Standing(record, (f"verb: {record.get('verb')!r} then, {request.verb!r} now",))
    before, now = read_config(path, hint="--overwrite begins again"), yaml.safe_load(request.as_yaml())
    keys = sorted((before.keys() | now.keys()) - draft.undecided)
    other = [key for key in keys if before.get(key) != now.get(key)]
    recorded = mapping(record, "inputs")
    # what is not finished reads the data again and compares its content
    passing = () if record.get("status") == "done" else (DATA_FILES,)
    inputs = {name: value for name, value in request.inputs.items() if name in recorded and name not in passing}
    return Standing(
        record,
        tuple(f"{key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in other),
        tuple(name for name, value in inputs.items() if recorded[name] != value),
    )


def discard(path: Path) -> None:
    """Empty a run folder; a kill on the way leaves one that is begun anew. One that is not there is left so.

    Raises:
        MidblockError: something lies there that midblock did not write, or another process is writing it.
    """
    if not _in_use(path):
        return
    _check_own(path)
    with held(path):
        RunFolder(path, {**read_record(path), "status": OPENING}).save()
        _empty(path)
        (path / RECORD).unlink()


def _in_use(path: Path) -> bool:
    """Whether something lies in the folder that was not left by a run killed before it wrote its first file.

    Raises:
        MidblockError: it is a file, or the system refuses the name.
    """
    try:
        if path.exists() and not path.is_dir():
            raise MidblockError(f"{path} is a file", hint="--output-dir wants a folder")
        return occupied(path)
    except OSError as error:
        raise write_failure(path, error) from error


def _check_own(path: Path) -> None:
    try:
        verb = VERBS.get(str(read_record(path).get("verb")))
    except MidblockError:
        verb = None
    if verb is None or not verb.fills:
        hint = "it holds no run.json of ours; remove it yourself or choose another --output-dir"
        raise MidblockError(f"{path} was not written by midblock, so it is not overwritten", hint=hint)


def _check_apart(path: Path, sources: Collection[Path]) -> None:
    where = path.resolve()
    for source in sources:
        if source.resolve().is_relative_to(where):
            what = f"{path} holds {source} itself, which this command reads, so it is not overwritten"
            raise MidblockError(what, hint="choose another --output-dir")


def _empty(path: Path) -> None:
    """Remove what lies in the folder but its lock and its record, by which it is known as ours; it may be a link."""
    if not path.is_dir():
        return
    try:
        for entry in path.iterdir():
            if entry.name in (LOCK, RECORD):
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    except OSError as error:
        raise write_failure(path, error) from error


def _ways(path: Path, draft: Draft) -> str:
    """What would be accepted in place of a command that finds something there."""
    ways = ""
    for way, check in (("--resume continues it, ", _resumable), ("--overwrite replaces it, ", _check_replaceable)):
        with suppress(MidblockError):
            check(path, draft)
            ways += way
    return f"{ways}{'or ' if ways else ''}choose another --output-dir"


def _check_replaceable(path: Path, draft: Draft) -> None:
    _check_own(path)
    _check_apart(path, draft.known.sources)


def _resumable(path: Path, draft: Draft) -> dict[str, Any] | None:
    """The record of the run that can be gone on with; None where it was killed before there was anything."""
    verb, record = draft.known.verb, read_record(path)
    if record.get("verb") != verb:
        raise MidblockError(f"{path} holds a run of `midblock {record.get('verb')}`, not of `{verb}`")
    if record.get("status") == OPENING:
        return None
    found = standing(path, draft)
    if found.differences:
        hint = "--resume wants the same settings; choose another --output-dir"
        raise MidblockError(f"{path} was made with other settings: {', '.join(found.differences)}", hint=hint)
    if found.changed:
        raise MidblockError(f"{path}: {', '.join(found.changed)} changed since", hint="--overwrite measures it anew")
    if record.get("status") != "done" and record.get("format") != FORMAT:
        began = mapping(record, "versions").get("midblock")
        what = f"{path} was begun by midblock {began}, whose unfinished runs this version cannot go on with"
        raise MidblockError(what, hint="--overwrite begins again")
    return record
