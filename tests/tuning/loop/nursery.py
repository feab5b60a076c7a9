"""Run by test_killed.py: imports once, then forks a process for each command line that comes in, one after the other.

A line in is JSON: `arguments`, `stderr` (a file), `limit` (bytes a file may have, or null). Lines out: the process's
number as it starts, and its exit code when it has ended, negative for a signal.
"""

import json
import os
import resource
import sys
import traceback

import midblock.cli.tune
import midblock.tuning.loop.trainer  # noqa: F401 what takes seconds, before the first fork
from midblock.cli.main import main


def run(arguments: list[str], stderr: str, limit: int | None) -> int:
    """What `python -m midblock` does, in the child."""
    errors = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(errors, 1)
    os.dup2(errors, 2)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = ["midblock", *arguments]
    try:
        return main(arguments)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


for line in sys.stdin:
    child = os.fork()
    if not child:
        os._exit(run(**json.loads(line)))
    sys.stdout.write(f"{child}\n")
    sys.stdout.flush()
    sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
    sys.stdout.flush()
