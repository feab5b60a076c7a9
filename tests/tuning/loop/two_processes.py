"""Run by torchrun from test_distributed.py: the same runs in every process, one after the other."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from midblock import carve, flow, tune
from midblock.base import Silent
from midblock.runs.processes import rank
from midblock.runs.stopping import STOPPING, Stopped

VERBS = {"tune": tune, "flow": flow, "carve": carve}


class Terminated(Silent):
    """Sends SIGTERM to the second process alone, in its n-th step."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def phase(self, name, total):
        def advance(amount):
            self.left -= amount if name == "tuning" else 0
            if self.left == 0 and rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        return advance


def main(plan: Path) -> None:
    """`plan` is a JSON list of keyword arguments, with `verb`, and `stopped`: in which step, before it goes on."""
    for options in json.loads(plan.read_text()):
        verb, stopped = VERBS[options.pop("verb", "tune")], options.pop("stopped", None)
        given = [options.pop(name) for name in ("base", "tuned", "data", "layers") if name in options]
        if stopped is not None:
            with STOPPING.heeding_signals(), pytest.raises(Stopped, match="stopped by SIGTERM"):
                verb(*given, **options, progress=Terminated(stopped))
            options["resume"] = True
        verb(*given, **options)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
