"""The gate of a verb at the command line: hold the finished run against it, write what became of it, and say so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from midblock.analysis import check_gate
from midblock.analysis.gate.conditions import Condition
from midblock.analysis.gate.verdicts import Gate
from midblock.base import MidblockError
from midblock.base.errors import GateError
from midblock.runs.processes import main_process


def checked(folder: Path, conditions: Sequence[Condition]) -> Gate | None:
    """The verdicts on a finished run, written beside it by the main process; None where nothing was asked.

    Raises:
        MidblockError: a file of the run is broken, or the place cannot be written.
    """
    if not conditions or not main_process():
        return None
    gate = check_gate(folder, conditions)
    gate.write(folder)
    return gate


def stop_unless_passed(gate: Gate | None) -> None:
    """Let a run end well only where its gate passed.

    Raises:
        MidblockError: a condition is about what was not measured.
        GateError: a condition holds, or nothing vouches for that it does not.
    """
    if gate is None:
        return
    if gate.errors:
        raise MidblockError(gate.errors[0], hint="the run is whole all the same; see gate.json in its folder")
    if not gate.passed:
        raise GateError(gate.failures)
