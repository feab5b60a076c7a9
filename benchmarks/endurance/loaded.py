"""Import in this process what some work imports, without doing it here: who forks must stay without threads."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

HARMLESS = {"jemalloc_bg_thd"}  # PyArrow's allocator, which knows of forks


def load_what(work: Callable[[], None], names: Path) -> None:
    """Do the work in a child, then import here what was imported there.

    Args:
        names: a file for the names of the modules.

    Raises:
        RuntimeError: the work failed.
    """
    pid = os.fork()
    if not pid:
        code = 1
        try:
            work()
            names.write_text("\n".join(list(sys.modules)), encoding="utf-8")
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("what the kills are held against cannot be made")
    for name in names.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(Exception):  # names that are no modules to import
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what forks share stays shared
    threads = {file.read_text(encoding="utf-8").strip() for file in Path("/proc/self/task").glob("[0-9]*/comm")}
    if len(threads - HARMLESS) > 1:
        raise RuntimeError("this process has threads, so forks of it may hang")
