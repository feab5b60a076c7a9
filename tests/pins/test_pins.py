"""What every verb leaves behind, file by file and number by number: a refactor changes none of it.

After a change that is meant to: `MIDBLOCK_WRITE_PINS=1 pytest tests/pins`, look at the difference, and say why.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from .lines import differences, pins
from .verbs import RUNS, make_runs, write_pair

GOLDEN = Path(__file__).with_name("golden")
WRITE = os.environ.get("MIDBLOCK_WRITE_PINS") == "1"
SHOWN = 20


def golden(run: str) -> dict[str, list[str]]:
    file = GOLDEN / f"{run}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() and not WRITE else {}


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, pico: Any, tuned_from: Any, tokenizer: Any
) -> tuple[Path, dict[str, str]]:
    """The folder of all runs, and what went wrong in those that failed."""
    folder = tmp_path_factory.mktemp("pins")
    write_pair(folder, pico, tuned_from, tokenizer)
    return folder, make_runs(folder)


def seen(made: tuple[Path, dict[str, str]], run: str) -> dict[str, list[str]]:
    folder, failed = made
    if run in failed:
        pytest.fail(f"{run} ({' '.join(RUNS[run])}): {failed[run]}", pytrace=False)
    return pins(folder / run)


@pytest.mark.parametrize("run", RUNS)
def test_a_run_leaves_what_is_pinned_and_nothing_else(made, run):
    now = seen(made, run)
    if WRITE:
        GOLDEN.mkdir(exist_ok=True)
        (GOLDEN / f"{run}.json").write_text(json.dumps(now, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
        return
    assert list(now) == list(golden(run))


@pytest.mark.parametrize(("run", "aspect"), [(run, aspect) for run in RUNS for aspect in golden(run)])
def test_pin(made, run, aspect):
    now = seen(made, run)
    assert aspect in now, f"{run}: no {aspect}"
    found = differences(golden(run)[aspect], now[aspect], aspect)
    shown = "\n".join(found[:SHOWN]) + f"\n… and {len(found) - SHOWN} more" * (len(found) > SHOWN)
    if found:
        pytest.fail(f"{run}, {aspect}:\n{shown}", pytrace=False)


def test_no_pin_is_left_over():
    assert {file.stem for file in GOLDEN.glob("*.json")} == set(RUNS)
