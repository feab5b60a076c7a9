"""The process that writes conversations by templates of strangers; `sandbox.py` starts it and asks it.

It is run as a file, so that it imports as little as it can. A request is a pickle on standard input, of many
conversations; each is answered by one line of JSON, for nothing that a stranger's template made is unpickled by the one
who asked. Limits are set for each conversation, and cost a few microseconds.
"""

from __future__ import annotations

import faulthandler
import json
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator
from functools import cache
from typing import IO, Any

from transformers.utils.chat_template_utils import render_jinja_template

READY = "ready"
LETTERS = 300  # of a reason
HAS_ALARM = hasattr(signal, "setitimer")  # Windows has none


def main() -> None:
    """Answer requests until there are no more."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    sys.stdout = sys.stderr
    if HAS_ALARM:  # a process can be started with it ignored or held back
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    _say(answers, READY)
    while True:
        try:
            request = pickle.load(requests)  # noqa: S301 (from the process that started this one)
        except EOFError:
            return
        for answer in _answers(**request):
            _say(answers, answer)


def _say(answers: IO[bytes], what: Any) -> None:
    answers.write(json.dumps(what).encode("ascii") + b"\n")
    answers.flush()  # the next conversation may end the process


def _answers(
    conversations: list[bytes],
    *,
    stop: bool,
    seconds: float,
    left: float,
    each: float,
    memory: int,
    letters: int,
    times: int,
) -> Iterator[dict[str, Any]]:
    """What `_answer` says of each conversation, the seconds left to the template, and whether it is the last answer."""
    for number, conversation in enumerate(conversations, start=1):
        left, more = left + each, times * len(conversation)
        started = time.monotonic()
        _set_alarm(min(left, seconds))
        _limit_memory(memory + more)
        answer = _answer(pickle.loads(conversation), letters + more)  # noqa: S301
        _set_alarm(0)
        left -= time.monotonic() - started
        last = number == len(conversations) or "beyond" in answer or (stop and "reason" in answer)
        yield {**answer, "left": left, "last": last}
        if last:
            return


def _set_alarm(seconds: float) -> None:
    """End this process in so many seconds, in the middle of anything and whatever holds Python's lock; 0: do not."""
    if HAS_ALARM:
        signal.setitimer(signal.ITIMER_REAL, seconds)
    elif seconds:
        faulthandler.dump_traceback_later(seconds, exit=True)  # starts a thread, which is slow
    else:
        faulthandler.cancel_dump_traceback_later()


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

    sizes, page, hard = _sizes()
    taken = int(os.pread(sizes, 64, 0).split()[0]) * page
    limit = taken + count if hard == resource.RLIM_INFINITY else min(taken + count, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


@cache
def _sizes() -> tuple[int, int, int]:
    """The file that says how many pages this process has, a page's bytes, and the limit that it was started with.

    To open the file takes ten times as long as to read it.
    """
    import resource

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    return os.open("/proc/self/statm", os.O_RDONLY), resource.getpagesize(), hard


if __name__ == "__main__":
    main()
