import math

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midblock.base import LayerRow, LayerTable, MidblockError
from midblock.base.states import STATES

names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
floats = st.floats(width=64)
cells = st.fixed_dictionaries(
    {
        "model": names | st.sampled_from(["base", "NA", "nan", "null", "1", 'a,"b"', "a\nb"]),
        "layer": st.integers(-1, 40),
        "metric": names,
        "value": floats,
        "n": st.integers(0, 2**62),
        "low": floats,
        "high": floats,
        "dataset": names | st.just(""),
        "module": st.sampled_from(["residual", "q_proj"]),
        "state": st.sampled_from(list(STATES)),
    }
)


def assert_same(ours, theirs):
    pd.testing.assert_frame_equal(ours.frame, theirs.frame, check_exact=True)


def place(row):
    return row["model"], row["dataset"], row["layer"], row["metric"], row["module"]


@given(st.lists(cells, min_size=1, max_size=6, unique_by=place))
@settings(max_examples=40, deadline=None)
def test_parquet_and_csv_give_back_every_bit(tmp_path_factory, drawn):
    folder = tmp_path_factory.mktemp("table")
    table = LayerTable.from_rows([LayerRow(blocks=40, **each) for each in drawn])
    table.write(folder)
    assert_same(LayerTable.read(folder), table)
    assert_same(LayerTable.read(folder / "layers.parquet"), table)
    assert_same(LayerTable.read(str(folder / "layers.csv")), table)


def small():
    cells = [("sft", 2, "cka", 0.5), ("base", 0, "gini", 0.1), ("sft", 0, "cka", 0.9), ("sft", 0, "gini", 0.2)]
    return LayerTable.from_rows([LayerRow(model, layer, 4, metric, value, 8) for model, layer, metric, value in cells])


def test_depth_puts_the_last_block_at_one():
    table = LayerTable.from_rows([LayerRow("base", layer, 4, "gini", 0.0, 1) for layer in range(-1, 5)])
    assert table.frame.depth.tolist() == [0, 0.25, 0.5, 0.75, 1, 1.25]
    assert table.blocks == 4


def test_what_it_holds():
    table = small()
    assert (table.models, table.metrics, len(table)) == (["base", "sft"], ["cka", "gini"], 4)
    assert [row.value for row in table] == [0.5, 0.1, 0.9, 0.2]
    assert math.isnan(next(iter(table)).low)


def test_select_by_value_and_by_several():
    table = small()
    assert [row.value for row in table.select(model="sft", layer=0)] == [0.9, 0.2]
    assert [row.value for row in table.select(metric=["cka", "none"])] == [0.5, 0.9]
    assert len(table.select(model="dpo")) == 0


def test_curve_is_sorted_by_layer():
    assert small().curve("cka", "sft").layer.tolist() == [0, 2]
    assert small().curve("cka", "sft", "q_proj").empty


def test_an_unknown_column_gets_the_nearest():
    with pytest.raises(MidblockError, match=r"unknown column 'metrc'.*did you mean 'metric'"):
        small().select(metrc="cka")


def test_to_pandas_is_a_copy():
    table = small()
    frame = table.to_pandas()
    frame["value"] = 0.0
    assert table.frame.value.tolist() == [0.5, 0.1, 0.9, 0.2]


def test_concatenate():
    table = small()
    both = LayerTable.concatenate([table, LayerTable.from_rows([]), table])
    assert len(both) == 8
    assert_same(LayerTable.concatenate([table]), table)
    assert len(LayerTable.concatenate([])) == 0


def test_no_table_there(tmp_path):
    with pytest.raises(MidblockError, match=r"no layer table at .*midblock analyze"):
        LayerTable.read(tmp_path)
    with pytest.raises(MidblockError, match="no layer table at"):
        LayerTable.read(tmp_path / "gone" / "layers.csv")


@pytest.mark.parametrize("name", ["layers.csv", "layers.parquet"])
def test_a_missing_column_is_named(tmp_path, name):
    frame = small().frame.drop(columns=["depth", "n"])
    frame.to_csv(tmp_path / name) if name.endswith("csv") else frame.to_parquet(tmp_path / name)
    with pytest.raises(MidblockError, match=rf"{name} is no layer table: it lacks depth, n"):
        LayerTable.read(tmp_path / name)


@pytest.mark.parametrize("name", ["layers.csv", "layers.parquet"])
def test_a_broken_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"PAR1 \x00\xff")
    with pytest.raises(MidblockError, match=name):
        LayerTable.read(tmp_path / name)


def test_no_block_no_depth():
    with pytest.raises(MidblockError, match="no decoder block"):
        LayerTable.from_rows([LayerRow("base", -1, 4, "gini", 0.0, 1)]).blocks  # noqa: B018


def test_a_dataset_whose_path_is_no_text_has_a_printable_name(tmp_path):
    names = {"a\udcff\x1b[31m.jsonl": "a\\udcff\\x1b[31m.jsonl", "données.jsonl": "données.jsonl", "": ""}
    rows = [LayerRow("sft", 0, 3, "cka", 0.5, 4, dataset=name) for name in names]
    LayerTable.from_rows(rows).write(tmp_path)
    for file in (tmp_path, tmp_path / "layers.csv"):
        assert LayerTable.read(file).frame.dataset.tolist() == list(names.values())
