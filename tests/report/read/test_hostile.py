"""What lies in a stranger's run folder: left out with a note, or bounded, never a traceback."""

import json
import os

import pytest

from midblock.base import LayerRow, LayerTable
from midblock.report.read import reading
from midblock.report.read.reading import Run, bounded
from midblock.report.read.training_log import Log
from midblock.runs.lenient import as_number, parsed

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 70 + "1" + "}" * 70, "{", "", "\x00"])
def test_what_cannot_be_walked_is_nothing(text):
    assert parsed(text) is None


def test_numbers_without_end_are_no_numbers():
    found = parsed(f'{{"a": {"9" * 5000}, "b": 12, "c": NaN, "d": 1e999}}')
    assert [str(as_number(found[key])) for key in "abcd"] == ["nan", "12.0", "nan", "nan"]


@pytest.mark.parametrize("content", [DEEP, "[1]", "{", ""])
def test_a_broken_file_is_left_out_with_a_note(make_run, content):
    folder = make_run()
    for name in ("summary.json", "run.json"):
        whole = (folder / name).read_text()
        (folder / name).write_text(content)
        assert f"{name} is broken: what it tells is left out." in Run.read(folder).record["notes"]
        (folder / name).write_text(whole)
    assert not any("broken" in note for note in Run.read(folder).record["notes"])


def test_what_waits_or_never_ends_is_left_out(make_run):
    folder = make_run()
    (folder / "summary.json").unlink()
    os.mkfifo(folder / "summary.json")
    (folder / "run.json").unlink()
    (folder / "run.json").symlink_to("/dev/zero")
    run = Run.read(folder)
    assert (run.summary, len(run.record["notes"])) == ({}, 2)


def test_a_log_is_thinned_and_a_line_without_end_is_cut(tmp_path, monkeypatch):
    file = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(1, 101)]
    file.write_text("\n".join([*lines, '{"step": 101, "loss": "' + "x" * 2**21]))
    assert Log.read(file).steps == list(range(1, 101))
    monkeypatch.setattr("midblock.report.read.training_log.MOST", 11)
    assert Log.read(file).steps == list(range(1, 101, 10))
    assert len(Log.read(tmp_path / "gone")) == 0
    os.mkfifo(tmp_path / "pipe")
    assert len(Log.read(tmp_path / "pipe")) == 0


def test_a_page_shows_so_many_models_and_rows(monkeypatch):
    rows = [LayerRow(name, layer, 3, "cka", 0.5, 3) for name in ("base", "a", "b", "c") for layer in range(4)]
    table = LayerTable.from_rows(rows)
    assert bounded(table) == (table, [])
    monkeypatch.setattr(reading, "MOST_MODELS", 3)
    monkeypatch.setattr(reading, "MOST_ROWS", 10)
    shown, notes = bounded(table)
    assert (shown.models, len(shown)) == (["base", "a", "b"], 10)
    assert notes == [
        "The table tells of 4 models; the first 3 are shown.",
        "The table has 12 rows; the first 10 are shown.",
    ]
