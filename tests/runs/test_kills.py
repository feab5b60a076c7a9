"""Real processes and real kills: an analysis killed before each name it gives, and several processes in one folder.

`benchmarks/endurance` does the same with every verb, hundreds of times.
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PASSING = ("started", "phases", "command")


@pytest.fixture(scope="module")
def here(tmp_path_factory, pico, tuned_from, tokenizer):
    """Where everything happened; `told.json` and `stderr` say how."""
    folder = tmp_path_factory.mktemp("kills")
    base = pico("llama")
    for model, name in ((base, "base"), (tuned_from(base), "sft")):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = [{"question": f"She has {n} apples. How many?", "answer": str(n)} for n in range(6)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(Path(__file__).with_name("killing.py")), str(folder)]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (folder / "stderr").write_text(done.stderr)
    return folder


def told(here):
    return json.loads((here / "told.json").read_text())


def left(place):
    """What lies in a place; what says when it was made does not count."""
    found = {}
    for path in place.rglob("*"):
        name = path.relative_to(place).as_posix()
        if name == "run/run.json":
            record = json.loads(path.read_text())
            found[name] = {key: value for key, value in record.items() if key not in PASSING}
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def test_killed_before_any_name_it_gives_an_analysis_goes_on_and_leaves_the_same(here):
    *killed, whole = told(here)["killed"]
    assert told(here)["whole"] == 0
    assert whole == [0, 0]
    assert len(killed) >= 6, "run.json, config.yaml, a piece, the tables, the summary, run.json again"
    assert killed == [[-signal.SIGKILL, 0]] * len(killed), (here / "stderr").read_text()
    expected = left(here / "whole")
    assert all(left(here / f"killed-{n}") == expected for n in range(1, len(killed) + 2))


@pytest.mark.parametrize(("then", "code"), [("freed", 0), ("killed-too", -signal.SIGKILL)])
def test_one_fills_a_folder_others_hear_of_it_and_a_dead_ones_lock_is_taken_over(here, then, code):
    first, others, ends, after = told(here)[then]
    assert (others, ends, after) == ([1, 1], code, 0)
    told_of = rf"^\S*MidblockError: .*is being written by process {first} on "
    lines = re.findall(told_of, (here / "stderr").read_text(), re.MULTILINE)
    assert len(lines) == 2
    assert left(here / f"held-{then}") == left(here / "whole")
