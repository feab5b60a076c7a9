"""Forks analyses and kills them, in a process of its own that has no threads: who forks with threads may hang.

`python killing.py FOLDER`: inside are a pair, `base` and `sft`, and `sums.jsonl`; each scenario gets a place beside
them, and `told.json` says how its processes ended.
"""

import gc
import importlib
import json
import os
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from midblock import analyze, load_pair

SMALL = {"num_samples": 4, "num_token_samples": 0, "max_length": 24, "metrics": "change_intensity", "weights": False}


def fork(place, at_rename=lambda n: None, names=None, **flags):
    """Start an analysis that does something before it gives a name for the n-th time; its number.

    Into the file `names` go the names of the modules that it imported.
    """
    place.mkdir(exist_ok=True)
    pid = os.fork()
    if pid:
        return pid
    code, renames = 1, 0

    def hook(event, arguments):
        nonlocal renames
        if event == "os.rename":
            renames += 1
            at_rename(renames)

    try:
        sys.addaudithook(hook)
        here = place.parent
        pair = load_pair(str(here / "base"), str(here / "sft"), device="cpu")
        analyze(pair, str(here / "sums.jsonl"), output_dir=place / "run", **SMALL, **flags)
        if names is not None:
            names.write_text("\n".join(sys.modules))
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def load(names):
    """Import what an analysis did, for all forks; without doing one here, which would leave threads."""
    for name in names.read_text().splitlines():
        with suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_before_each_rename(here):
    codes = []
    while not codes or codes[-1][0] != 0:
        kill_at = len(codes) + 1
        place = here / f"killed-{kill_at}"
        first = ended(fork(place, lambda n, at=kill_at: os.kill(os.getpid(), signal.SIGKILL) if n == at else None))
        codes.append([first, ended(fork(place, resume=True)) if first else 0])
    return codes


def held_by_another(here, at, then):
    """One stays before its n-th rename; what others are told; then that one is let go or killed, and gone on with."""
    (reached, tell), (gate, go), place = os.pipe(), os.pipe(), here / f"held-{then}"

    def stay(n):
        if n == at:
            os.write(tell, b".")
            os.read(gate, 1)

    first = fork(place, stay)
    os.close(tell)
    assert os.read(reached, 1) == b"."
    others = [ended(fork(place, **{flag: True})) for flag in ("resume", "overwrite")]
    os.write(go, b".") if then == "freed" else os.kill(first, signal.SIGKILL)
    return [first, others, ended(first), ended(fork(place, resume=True))]


if __name__ == "__main__":
    here = Path(sys.argv[1])
    told = {"whole": ended(fork(here / "whole", names=here / "modules"))}
    load(here / "modules")
    told |= {"killed": killed_before_each_rename(here)}
    told |= {then: held_by_another(here, at, then) for at, then in ((3, "freed"), (5, "killed-too"))}
    (here / "told.json").write_text(json.dumps(told))
