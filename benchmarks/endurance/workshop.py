"""Where commands are run: fresh places, and for each command the run that nobody stopped."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.endurance.cases import CASES, GROUND, RUN, Case
from benchmarks.endurance.child import Child, start
from benchmarks.endurance.loaded import load_what
from benchmarks.endurance.same import Against, against, seen
from benchmarks.endurance.world import START, write_world
from midblock.cli.main import main

# A user's files, whose names look like ours: nobody may take them.
WITH_SPLITS = "builtin:chain_sum"  # what the demo reads here; a file has no test split
BYSTANDERS = (".run.mine.partial", ".run.json.notes.tmp", "mine.txt")


@dataclass(frozen=True)
class Whole:
    """What a command leaves and does when nobody stops it.

    Attributes:
        seen: its place.
        events: how often it touches a name there.
        seconds: how long it takes.
    """

    seen: dict[str, str]
    events: int
    seconds: float


@dataclass
class Workshop:
    """A world, and places beside it.

    Attributes:
        root: scratch folder; everything lies below it.
        count: places so far.
    """

    root: Path
    count: int = 0
    known: dict[str, Whole] = field(default_factory=dict)

    @property
    def world(self) -> Path:
        return self.root / "world"

    def prepare(self, names: Sequence[str]) -> None:
        """Write the world, and import whatever these commands import: forks find it loaded.

        Everything is done in a child, which says what it has imported: this process must stay without threads.

        Raises:
            RuntimeError: a command fails by itself.
        """
        load_what(lambda: self._make(names), self.root / "modules")

    def _make(self, names: Sequence[str]) -> None:
        write_world(self.world)
        for name, words in GROUND.items():
            self._inside(Case(words, into=("--output-dir", name)), self.world)
        for case in map(CASES.__getitem__, names):
            self._inside(case, self.place(case))

    def _inside(self, case: Case, place: Path) -> None:
        """Run a command in this process."""
        act, words = self._command(case)
        os.chdir(place)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as told:
            code = act([*words, *case.into])
        if code != 0:
            raise RuntimeError(f"{' '.join(words)} ends with {code}: {told.getvalue()}")

    def place(self, case: Case) -> Path:
        """A new folder to work in."""
        self.count += 1
        place = self.root / "places" / f"{os.getpid()}-{self.count:05d}"
        place.mkdir(parents=True)
        for name in BYSTANDERS:
            (place / name).write_text("mine", encoding="utf-8")
        if case.finds:
            shutil.copytree(self.world / case.finds, place / RUN)
        return place

    def whole(self, name: str) -> Whole:
        """The run of a command that nobody stops.

        Raises:
            RuntimeError: it fails by itself.
        """
        if name not in self.known:
            place = self.place(CASES[name])
            ended = self.start(name, (), place).end()
            if ended.code != 0:
                raise RuntimeError(f"{name} ends with {ended.code}: {ended.told}")
            self.known[name] = Whole(self.seen(place), len(ended.events), ended.ended - ended.began)
        return self.known[name]

    def start(
        self, name: str, flags: Sequence[str], place: Path, *, kill_at: int = 0, gate: int | None = None
    ) -> Child:
        """Start a command in a place."""
        return self._start(CASES[name], flags, place, kill_at, gate)

    def seen(self, place: Path) -> dict[str, str]:
        """What lies in a place, bystanders left out."""
        return {name: content for name, content in seen(place).items() if name not in BYSTANDERS}

    def against(self, name: str, place: Path) -> Against:
        """Hold a place against the run that nobody stopped; a bystander that is gone is lost."""
        found = against(self.whole(name).seen, self.seen(place))
        gone = tuple(name for name in BYSTANDERS if not (place / name).exists())
        return replace(found, lost=found.lost + gone)

    def _start(self, case: Case, flags: Sequence[str], place: Path, kill_at: int = 0, gate: int | None = None) -> Child:
        act, words = self._command(case)
        self.count += 1
        notes = self.root / "notes" / f"{self.count:05d}"
        return start(act, [*words, *case.into, *flags], place, notes, kill_at=kill_at, gate=gate)

    def _command(self, case: Case) -> tuple[Callable[[Sequence[str]], int], list[str]]:
        words = [str(self.world / word[1:]) if word.startswith("@") else word for word in case.words]
        return (partial(_demo, self.world) if case.verb == "demo" else main), words


def _demo(world: Path, words: Sequence[str]) -> int:
    """The demo on the pico base instead of the embedded model."""
    study, verb = (importlib.import_module(f"midblock.{room}.demo") for room in ("studies", "cli"))
    tuning = replace(study.TUNING, max_steps=6, num_samples=12, max_length=200, save_steps=2)
    small = partial(study.demo, tuning=replace(tuning, per_device_train_batch_size=2))
    with _instead(study, BASE=str(world / START), DATA=WITH_SPLITS), _instead(verb, run_demo=small):
        return main(words)


@contextlib.contextmanager
def _instead(module: ModuleType, **values: Any) -> Iterator[None]:
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
