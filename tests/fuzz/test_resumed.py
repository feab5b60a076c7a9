"""Runs that were interrupted and whose files were damaged before `--resume`: other numbers never, one line at most."""

import os
import shutil
from itertools import count
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from midblock.base import LayerTable
from midblock.tuning.loop.log_file import LogFile

from .door import knock
from .kind import Kind, cases_of
from .nasty import BREAKAGES, Spoil, broken

DATA = ("--data", "sums.jsonl", "--device", "cpu")
WRITING, LOGGING = (LayerTable, "write", 1), (LogFile, "append", 5)
RUNS: dict[str, tuple[tuple[str, ...], tuple[type, str, int]]] = {
    "analyze": (("start", "sft", "--num-samples", "6", "--metrics", "cka", "--no-precision-floor"), WRITING),
    "probe": (("start", "sft", "--num-samples", "4"), WRITING),
    "swap": (("start", "sft", "--num-samples", "4", "--segments", "3"), WRITING),
    "steer": (("start", "--from", "sft", "--num-samples", "4", "--num-directions-samples", "4", "--max-new-tokens", "2",
               "--random-draws", "1", "--no-scan"), WRITING),
    "tune": (("start", "--max-steps", "6", "--save-steps", "2", "--max-length", "48"), LOGGING),
    "flow": (("start", "--max-steps", "4", "--max-length", "48"), WRITING),
}  # fmt: skip


def stopped(arguments: list[str], place: tuple[type, str, int]) -> None:
    """Press Ctrl-C where a function is called for the n-th time."""
    owner, name, times = place
    whole, calls = getattr(owner, name), count(1)

    def press(*arguments: Any) -> Any:
        if next(calls) == times:
            raise KeyboardInterrupt
        return whole(*arguments)

    setattr(owner, name, press)
    try:
        outcome = knock(arguments)
    finally:
        setattr(owner, name, whole)
    assert outcome.code == 130, outcome.line


def command(verb: str) -> tuple[str, ...]:
    return (verb, *RUNS[verb][0], *DATA, "-o", f"stopped-{verb}")


def lay(run: Path) -> None:
    """The interrupted run, made once beside the whole inputs."""
    verb, whole = run.name.removeprefix("stopped-"), run.parent.parent / "whole"
    if not (whole / run.name).exists():
        before = Path.cwd()
        os.chdir(whole)
        try:
            stopped(list(command(verb)), RUNS[verb][1])
        finally:
            os.chdir(before)
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(whole / run.name, run)


def files(run: Path) -> list[str]:
    return sorted(str(file.relative_to(run)) for file in run.rglob("*") if file.is_file() and ".lock" not in file.name)


def ways(names: list[str]) -> st.SearchStrategy[Spoil]:
    damage = st.sampled_from((*BREAKAGES, "a byte", "a byte", "gone", "another's"))
    return st.builds(Spoil, st.just("file"), st.tuples(st.sampled_from(names)), damage)


def write(run: Path, names: list[str], spoil: Spoil) -> None:
    file = run / str(spoil.where[0])
    content = bytearray(file.read_bytes())
    if spoil.what == "gone":
        file.unlink()
    elif spoil.what == "another's":  # a file of the same kind from beside it
        others = [other for other in names if other != spoil.where[0] and Path(other).suffix == file.suffix]
        file.write_bytes((run / others[0]).read_bytes() if others else b"")
    elif spoil.what == "a byte":
        place = len(content) * 3 // 4
        content[place : place + 1] = bytes([content[place] ^ 1]) if content else b"\x01"
        file.write_bytes(content)
    else:
        file.write_bytes(broken(bytes(content), spoil.what))


def kind_of(verb: str, cases: int, **more: Any) -> Kind:
    return Kind(
        f"an interrupted {verb}", f"stopped-{verb}", [(*command(verb), "--resume")], ("start", "sft", "sums.jsonl"),
        cases, files, ways, write, out=f"stopped-{verb}", make=lay, **more,
    )  # fmt: skip


KINDS = [kind_of(verb, 4 if verb in ("analyze", "tune") else 2) for verb in RUNS]

test = cases_of(KINDS)
