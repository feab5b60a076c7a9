"""Verdicts as a table: a row a command, a column a kind of fault."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.endurance.kills import Verdict

HEAD = ("", "kind", "runs", "lost", "other numbers", "stuck", "left over", "told wrongly")


def counts(verdicts: Sequence[Verdict]) -> list[int]:
    """Of verdicts: how many there are, and how many show each fault."""
    return [
        len(verdicts),
        sum(bool(each.against.lost) for each in verdicts),
        sum(bool(each.against.other) for each in verdicts),
        sum(bool(each.stuck) for each in verdicts),
        sum(bool(each.against.left) for each in verdicts),
        sum(bool(each.told) for each in verdicts),
    ]


def markdown(verdicts: Sequence[Verdict]) -> str:
    """The table, with a row for each command and kind, and one for all."""
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for each in verdicts:
        groups.setdefault((each.case, each.kind), []).append(each)
    rows = [_row((*key, *counts(group))) for key, group in groups.items()]
    return "\n".join([_row(HEAD), _row(["---"] * len(HEAD)), *rows, _row(("**all**", "", *counts(verdicts)))])


def faults(verdicts: Iterable[Verdict]) -> list[str]:
    """A line for each verdict that shows one."""
    return [
        f"{each.case}, {each.kind} at {each.when}: "
        + "; ".join(
            f"{what} {', '.join(said) if isinstance(said, tuple) else said}"
            for what, said in {**vars(each.against), "stuck": each.stuck, "told": each.told}.items()
            if said
        )
        for each in verdicts
        if not each.good
    ]


def _row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"
