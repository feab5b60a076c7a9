"""The process that writes conversations by templates of strangers; `sandbox.py` starts it and asks it.

It is run as a file, so that it imports as little as it can. A request is a pickle on standard input; the answer is one
line of JSON, for nothing that a stranger's template made is unpickled by the one who asked.
"""

from __future__ import annotations

import faulthandler
import json
import os
import pickle
import sys
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

READY = "ready"
LETTERS = 300  # of a reason


def main() -> None:
    """Answer requests until there are no more."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "w", encoding="ascii")
    sys.stdout = sys.stderr
    print(READY, file=answers, flush=True)
    while True:
        try:
            request = pickle.load(requests)  # noqa: S301 (from the process that started this one)
        except EOFError:
            return
        # a thread of its own that needs no lock of Python's: it ends this process in the middle of anything
        faulthandler.dump_traceback_later(request["seconds"], exit=True)
        _limit_memory(request["bytes"])
        answer = _answer(pickle.loads(request["options"]), request["letters"])  # noqa: S301
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(answer), file=answers, flush=True)


def _answer(options: dict[str, Any], letters: int) -> dict[str, Any]:
    """The text, and the stretches that the template marks; or a reason why there is none."""
    try:
        found: Any = render_jinja_template(**options)
        text, spans = str(found[0][0]), [list(span) for span in (found[1] or [[]])[0]]
    except MemoryError:
        return {"beyond": "too much memory"}
    except Exception as error:
        reason = " ".join((str(error) or type(error).__name__)[:LETTERS].split())
        return {"reason": "".join(letter if letter.isprintable() else "�" for letter in reason)}
    return {"text": text, "spans": spans} if len(text) <= letters else {"beyond": f"more than {letters:,} letters"}


def _limit_memory(count: int) -> None:
    """Let this process take so many bytes more than it has; Linux alone can say what it has and keeps to the limit."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = taken + count if hard == resource.RLIM_INFINITY else min(taken + count, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    main()
