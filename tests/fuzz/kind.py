"""A kind of bad input, and what must hold of every case of it.

To add one: a file `test_NAME.py` with `KINDS`, a list of `Kind`, and `test = cases_of(KINDS)`. A case that failed once
is kept in `kept`, as its `Spoil` is printed. `MIDBLOCK_FUZZ=2000 pytest tests/fuzz` tries that many cases a kind, other
ones each time and without shape checking, and prints what became of them; MIDBLOCK_FUZZ_SEED repeats a time.
"""

from __future__ import annotations

import json
import os
import random
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings

from midblock.base import LayerTable
from midblock.runs.lenient import parsed

from ..pins.verbs import sketched
from .door import Outcome, knock
from .nasty import Spoil, spoiled, spoils
from .world import Seen, World, seen

MANY = int(os.environ.get("MIDBLOCK_FUZZ", "0"))
SEED = int(os.environ.get("MIDBLOCK_FUZZ_SEED", random.randrange(10**9)))
TALLY: dict[str, Counter[str]] = {}  # kind → outcome → cases
SHOWN = 40
STRAYED = "touched a file that is not its own"


def never(spoil: Spoil) -> bool:
    return False


@dataclass(frozen=True)
class Kind:
    """A kind of bad input.

    Attributes:
        name: as the table calls it.
        file: what is spoiled, in the case's folder.
        commands: command lines, "OUT" the folder they write to; drawn from for each case.
        needs: what lies in the folder, of `World.need`.
        cases: how many in CI.
        ways: given the whole document, the strategy of spoils.
        write: spoils the file.
        meant: the numbers may differ without a note, for this is another whole input.
        also: what else must hold of what was left in the output folder; says what does not, "" where all is well.
        out: the folder that the commands may write to.
        make: lays a file of its own that is then spoiled.
        words: what stands for "NAME" in the commands; of no spoil (None) for the whole input, None to leave out that
            word and the option before it. Such a command may write beside `out`.
        kept: cases that failed once: the number of the command, and the spoil.
    """

    name: str
    file: str
    commands: Sequence[Sequence[str]]
    needs: Sequence[str]
    cases: int = 30
    read: Callable[[Path], Any] = lambda file: json.loads(file.read_text(encoding="utf-8"))
    ways: Callable[[Any], Any] = spoils
    write: Callable[[Path, Any, Spoil], None] = lambda file, whole, spoil: _write(file, spoiled(whole, spoil))
    meant: Callable[[Spoil], bool] = never
    also: Callable[[Path, Spoil], str] = lambda folder, spoil: ""
    out: str = "out"
    make: Callable[[Path], None] | None = None
    words: Callable[[Spoil | None], str | None] | None = None
    kept: Sequence[tuple[int, Spoil]] = ()


def _write(file: Path, content: bytes) -> None:
    file.write_bytes(content)


def cases_of(kinds: Sequence[Kind]) -> Callable[[World, Kind], None]:
    """A test of all cases of each kind; it names every one that fails, not the first alone."""

    @pytest.mark.timeout(0 if MANY else None)
    @pytest.mark.parametrize("kind", kinds, ids=lambda kind: kind.name)
    def test(world: World, kind: Kind) -> None:
        bench = Bench(kind, world)
        bench.run()
        TALLY.setdefault(kind.name, Counter()).update(bench.tally)
        if bench.failed:
            shown = "\n".join(bench.failed[:SHOWN])
            pytest.fail(f"{len(bench.failed)} cases of {kind.name}:\n{shown}", pytrace=False)

    return test


@dataclass
class Bench:
    """One kind at work."""

    kind: Kind
    world: World
    failed: list[str] = field(default_factory=list)
    tally: Counter[str] = field(default_factory=Counter)

    def run(self) -> None:
        from hypothesis import strategies as st

        self.lay()
        document = self.kind.read(self.world.case / self.kind.file)
        limits = settings(
            max_examples=MANY or self.kind.cases,
            derandomize=not MANY,
            database=None,
            deadline=None,
            phases=(Phase.explicit, Phase.generate),
            suppress_health_check=list(HealthCheck),
        )

        @limits
        @given(st.integers(0, len(self.kind.commands) - 1), self.kind.ways(document))
        def one(number: int, spoil: Spoil) -> None:
            self.case(number, document, spoil)

        for number, spoil in self.kind.kept:
            one = example(number, spoil)(one)
        (hypothesis.seed(SEED + zlib.crc32(self.kind.name.encode()))(one) if MANY else one)()
        if not self.tally.keys() - {"refused"}:
            self.null()

    def null(self) -> None:
        """Where all was refused, the whole input must not be, or it was refused for something else."""
        with self.world.inside():
            outcome, _ = self.whole(0)
        if outcome.code != 0:
            self.failed.append(f"whole: {outcome.line}")

    def lay(self) -> None:
        """Whole files, fresh."""
        self.world.need(*self.kind.needs)
        if self.kind.make is not None:
            self.kind.make(self.world.case / self.kind.file)

    def case(self, number: int, document: Any, spoil: Spoil) -> None:
        with self.world.inside() as folder:
            self.lay()
            self.kind.write(folder / self.kind.file, document, spoil)
            before = seen(folder, self.kind.out)
            outcome = self.knock(number, spoil)
            strayed = self.strayed(before, seen(folder, self.kind.out))
            verdict = outcome.fault or (strayed and STRAYED) or self.judge(number, outcome, spoil)
        good = verdict in ("refused", "the same", "told", "meant")
        self.tally[verdict if good else verdict.partition(":")[0]] += 1
        if not good:
            command = " ".join(self.kind.commands[number])
            where = f"[{command}] {place_of(outcome)}"
            self.failed.append(f"({number}, {spoil!r}): {verdict}: {outcome.line[:300]} {where}")

    def words(self, number: int, spoil: Spoil | None) -> tuple[str, ...]:
        """The command line of a spoil; of none, that of the whole input."""
        words = [self.kind.out if word == "OUT" else word for word in self.kind.commands[number]]
        if self.kind.words is not None and "NAME" in words:
            place, name = words.index("NAME"), self.kind.words(spoil)
            words[place - (name is None) : place + 1] = [] if name is None else [name]
        return tuple(words)

    def knock(self, number: int, spoil: Spoil | None) -> Outcome:
        with sketched():  # drawing takes longer than all else
            return knock(self.words(number, spoil))

    def strayed(self, before: Seen, after: Seen) -> bool:
        """What was there is as it was; what is new lies in the output folder, unless a name decided where."""
        new = after.keys() - before.keys()
        return not before.items() <= after.items() or bool(new and self.kind.words is None)

    def whole(self, number: int) -> tuple[Outcome, Any]:
        """What a command does with whole input; the same words find the same, whatever a kind spoils of it."""
        key = (self.words(number, None), self.kind.file if self.kind.make else "")
        if key not in self.world.known:
            self.lay()
            self.world.known[key] = self.knock(number, None), gist(self.world.case / self.kind.out)
        return self.world.known[key]

    def judge(self, number: int, outcome: Outcome, spoil: Spoil) -> str:
        if outcome.code == 2:
            return "refused"
        left = self.world.case / self.kind.out
        if wrong := self.kind.also(left, spoil):
            return wrong
        found = gist(left)
        whole, expected = self.whole(number)
        assert whole.code == 0, f"{self.kind.commands[number]}: {whole.line}"
        if alike(found, expected):
            return "the same"
        if outcome.notes - whole.notes:
            return "told"
        return "meant" if self.kind.meant(spoil) else "accepted nonsense"


def place_of(outcome: Outcome) -> str:
    """Where in our own code a traceback came through last."""
    lines = [line.strip() for line in outcome.trace.splitlines() if "/midblock/" in line]
    return f" {lines[-1]}" if lines else ""


def gist(folder: Path) -> Any:
    """The numbers that a command left: its table, its weights, its plan; a page has none of its own."""
    found: dict[str, Any] = {}
    if (folder / "run.json").exists() and (folder / "layers.parquet").exists():
        frame = LayerTable.read(folder).frame
        found["rows"] = list(zip(frame.model, frame.layer, frame.module, frame.metric, strict=True))
        found["values"] = frame.value.to_numpy(float)
    for file in sorted(folder.rglob("*.safetensors")) if folder.is_dir() else ():
        found[str(file.relative_to(folder))] = file.read_bytes()[8:]
    if (folder / "plan.json").exists():
        plan = parsed((folder / "plan.json").read_text(errors="replace"))
        found["blocks"] = plan["blocks"] if isinstance(plan, dict) and "blocks" in plan else "broken"
    return found


def alike(one: Any, other: Any) -> bool:
    if one.keys() != other.keys():
        return False
    return all(
        np.allclose(value, other[key], rtol=1e-6, equal_nan=True)
        if isinstance(value, np.ndarray) and len(value) == len(other[key])
        else np.array_equal(value, other[key])
        if isinstance(value, np.ndarray)
        else value == other[key]
        for key, value in one.items()
    )
