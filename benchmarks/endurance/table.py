"""Verdicts as tables: a row a command, then a row a way of being stopped; a column a kind of fault."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.endurance.kills import Verdict
from benchmarks.endurance.same import Against

HEAD = ("", "runs", "kills", "lost", "other numbers", "stuck", "left over", "told wrongly")


def write(verdict: Verdict, file: Path) -> None:
    """Add a verdict to a file, a line each: several processes may share the commands among them."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(verdict), ensure_ascii=False) + "\n")


def read(file: Path) -> list[Verdict]:
    """The verdicts of a file."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        against = Against(**{key: tuple(names) for key, names in entry.pop("against").items()})
        found.append(Verdict(**entry, against=against))
    return found


def markdown(verdicts: Sequence[Verdict]) -> str:
    """Kills by command and by kind, then pairs likewise."""
    killed, pairs = ([each for each in verdicts if bool(each.kills) == wanted] for wanted in (True, False))
    return "\n\n".join(
        f"{title}\n\n{_table(group, key)}"
        for group, what in ((killed, "Kills"), (pairs, "Pairs of processes"))
        for title, key in ((f"{what}, by command", "case"), (f"{what}, by kind", "kind"))
        if group
    )


def faults(verdict: Verdict) -> str:
    """What a verdict shows, on one line; \"\" where all is well."""
    shown = {**{key: ", ".join(names) for key, names in asdict(verdict.against).items()}}
    shown |= {"stuck": verdict.stuck, "told": verdict.told}
    said = "; ".join(f"{what}: {text}" for what, text in shown.items() if text)
    return said and f"{verdict.case}, {verdict.kind} at {verdict.when}: {said}"


def _table(verdicts: Sequence[Verdict], key: str) -> str:
    groups: dict[str, list[Verdict]] = {}
    for each in verdicts:
        groups.setdefault(getattr(each, key), []).append(each)
    rows = [_row((name, *_counts(group))) for name, group in groups.items()]
    return "\n".join([_row(HEAD), _row(["---"] * len(HEAD)), *rows, _row(("**all**", *_counts(verdicts)))])


def _counts(verdicts: Sequence[Verdict]) -> list[int]:
    return [
        len(verdicts),
        sum(each.kills for each in verdicts),
        sum(bool(each.against.lost) for each in verdicts),
        sum(bool(each.against.other) for each in verdicts),
        sum(bool(each.stuck) for each in verdicts),
        sum(bool(each.against.left) for each in verdicts),
        sum(bool(each.told) for each in verdicts),
    ]


def _row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"
