import json

import pytest

from midblock.base import LayerRow, LayerTable, MidblockError
from midblock.runs.finished import Finished, read_finished
from midblock.runs.lenient import as_number, entries_of, mapping, read_json, read_text

RECORD = {"verb": "probe", "status": "done", "models": [{"role": "base", "reference": "hub/a"}, "torn"]}


@pytest.fixture
def folder(tmp_path):
    rows = [LayerRow(model, layer, 4, "x", 1.0, 8) for model in ("base", "b", "a") for layer in range(-1, 4)]
    LayerTable.from_rows(rows).write(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(RECORD))
    (tmp_path / "summary.json").write_text(json.dumps({"models": [{"name": "b", "final": 2}, 3, {"name": "b"}]}))
    return tmp_path


def test_a_folder_read_back(folder):
    run = read_finished(folder)
    assert (run.verb, run.done, run.blocks, run.base, run.tuned) == ("probe", True, 4, "hub/a", ["b", "a"])
    assert run.summary_of("b") == {"name": "b", "final": 2}
    assert run.summary_of("a") == {}


@pytest.mark.parametrize("broken", ["", "{", "[1]", '{"models": 3, "verb": null}'])
def test_only_the_table_need_be_there(folder, broken):
    for name in ("run.json", "summary.json"):
        (folder / name).write_text(broken)
    run = read_finished(folder)
    assert (run.verb, run.done, run.base, run.summary_of("b")) == ("analyze", False, "base", {})
    (folder / "layers.parquet").unlink()
    with pytest.raises(MidblockError, match="no layer table"):
        read_finished(folder)


def test_depth_and_order_from_elsewhere():
    empty = LayerTable.from_rows([])
    assert (Finished(empty, {}, {}).blocks, Finished(empty, {}, {}, depth=7).blocks) == (1, 7)
    table = LayerTable.from_rows([LayerRow("a", 0, 2, "x", 1.0, 1), LayerRow("b", 0, 2, "x", 1.0, 1)])
    run = Finished(table, {}, {}, depth=7, order=("b", "a"))
    assert (run.blocks, run.tuned) == (2, ["b", "a"])


def test_what_is_not_what_it_should_be_is_left_out(tmp_path):
    assert [str(as_number(value)) for value in (2, True, "3", None, float("inf"))] == ["2.0", *["nan"] * 4]
    assert mapping({"a": {"b": 1}}, "a") == {"b": 1}
    assert mapping({"a": [1]}, "a") == mapping({}, "a") == {}
    assert entries_of({"a": [{"b": 1}, 2, None]}, "a") == [{"b": 1}]
    assert entries_of({"a": {"b": 1}}, "a") == []
    assert read_text(tmp_path / "gone") == ""
    (tmp_path / "list.json").write_text("[1]")
    assert read_json(tmp_path / "list.json", {}) == {}
    assert read_json(tmp_path / "list.json", []) == [1]
