"""Run by torchrun from test_sharing.py: the same runs in every process, one after the other."""

import json
import os
import signal
import sys
from pathlib import Path

from midblock import analyze, evaluate, load_pair, probe, swap
from midblock.base import MidblockError, Silent
from midblock.runs.processes import rank


class Ending(Silent):
    """In the second process alone, behind its first step: what cannot be gone on with, or the end."""

    def __init__(self, how: str) -> None:
        self.how = how

    def phase(self, name, total):
        def advance(amount):
            if name in ("measuring", "probing") and rank() == 1:
                if self.how == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise MidblockError("the second one cannot go on", hint="let it be")

        return advance


def run(verb: str, models: list[str], how: str | None = None, max_memory: str | None = None, **options) -> None:
    given = {**options, "progress": Ending(how) if how else Silent()}
    if verb == "evaluate":
        evaluate(models, given.pop("tasks"), loading={"device": "cpu"}, **given)
        return
    verbs = {"analyze": analyze, "probe": probe, "swap": swap}
    verbs[verb](load_pair(*models, device="cpu", max_memory=max_memory), given.pop("data"), **given)


def main(plan: Path) -> None:
    """`plan` is a JSON list of keyword arguments of `run`; what an error says goes to a file of each process."""
    for options in json.loads(plan.read_text()):
        try:
            run(**options)
        except MidblockError as error:
            said = f"{type(error).__name__}: {error}"
            Path(f"{options['output_dir']}.error{rank()}").write_text(said)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
