"""One world a session, quiet; the table of outcomes at the end of a larger mode."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import transformers

from midblock.data.sandbox import SANDBOX

from .kind import MANY, SEED, TALLY
from .world import World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, pico: Any, tuned_from: Any, tokenizer: Any) -> World:
    return World.at(tmp_path_factory.mktemp("fuzz"), pico, tuned_from, tokenizer)


@pytest.fixture(autouse=True, scope="session")
def impatient() -> Iterator[None]:
    """A template without end is refused when its time is over, which need not be ten seconds in every change."""
    before = SANDBOX._seconds
    if not MANY:
        SANDBOX._seconds = 2.0
    yield
    SANDBOX._seconds = before


@pytest.fixture(autouse=True)
def only_new_garbage() -> None:
    """Every command leaves some; to look for it through all that a session has takes longer than many a command."""
    gc.freeze()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not (MANY and TALLY):
        return
    outcomes = sorted({outcome for found in TALLY.values() for outcome in found})
    terminalreporter.write_line(f"bad inputs, seed {SEED}:")
    terminalreporter.write_line(" | ".join(["kind", *outcomes, "all"]))
    for name, found in TALLY.items():
        cells = [name, *(str(found[outcome]) for outcome in outcomes), str(found.total())]
        terminalreporter.write_line(" | ".join(cells))
