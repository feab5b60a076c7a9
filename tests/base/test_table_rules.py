"""Tables that anyone wrote: each column holds what it should, or one line says which does not."""

import numpy as np
import pandas as pd
import pytest

from midblock.base import LayerRow, LayerTable, MidblockError

L = 4


@pytest.fixture
def frame():
    rows = [LayerRow(name, layer, L, "cka", 0.5, 3) for name in ("base", "sft") for layer in range(-1, L + 1)]
    return LayerTable.from_rows(rows).frame


def read(tmp_path, frame, suffix="parquet"):
    file = tmp_path / f"layers.{suffix}"
    frame.to_parquet(file) if suffix == "parquet" else frame.to_csv(file, index=False)
    return LayerTable.read(file)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_whole_table_passes(tmp_path, frame, suffix):
    assert read(tmp_path, frame, suffix).frame.equals(frame)
    assert read(tmp_path, frame.assign(more=1), suffix).frame.equals(frame)
    assert read(tmp_path, pd.concat([frame, frame]), suffix).frame.equals(frame)
    assert read(tmp_path, frame.assign(value=np.nan, low=np.inf), suffix).frame.value.isna().all()


def at(frame, column, value, row=2):
    values = frame[column].astype(object).tolist()
    values[row] = value
    return frame.assign(**{column: values})


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("layer", None, "its column layer is empty in some rows"),
        ("layer", 0.5, "its column layer holds what is no whole number"),
        ("layer", -2, "its column layer holds a number that is out of range"),
        ("layer", 10**7, "depth does not say how many blocks there are"),
        ("layer", 2**63 - 1, "out of range"),
        ("depth", 0.0, "its column depth holds a number that is out of range"),
        ("depth", -1.0, "its column depth holds"),
        ("depth", np.nan, "its column depth is empty"),
        ("depth", np.inf, "its column depth holds"),
        ("depth", 1e-9, "depth does not say how many blocks there are"),
        ("n", -1, "its column n holds a number that is out of range"),
        ("n", None, "its column n is empty"),
        ("state", "mesured", "its column state holds 'mesured', which is no state"),
        ("state", "\x1b[31m" * 99, "which is no state"),
        ("state", None, "state"),
    ],
)
def test_what_is_not_what_it_should_be_is_told(tmp_path, frame, column, value, words, suffix):
    with pytest.raises(MidblockError) as caught:
        read(tmp_path, at(frame, column, value), suffix)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda frame: frame.assign(value="3"), "its column value is no column of numbers"),
        (lambda frame: frame.assign(layer=True), "its column layer is no column of numbers"),
        (lambda frame: frame.assign(metric=3), "its column metric is no column of texts"),
        (lambda frame: at(frame, "metric", None), "its column metric is empty"),
        (lambda frame: frame.assign(model=b"x"), "its column model is no column of texts"),
        (lambda frame: at(frame, "module", "a" * 10_001), "more than 10,000 letters"),
        (lambda frame: frame.drop(columns="n"), "it lacks n"),
        (lambda frame: pd.concat([frame, frame.assign(value=1.0)]), "two values of 'cka' for 'base' at layer -1"),
        (lambda frame: frame.assign(layer=L + 1, depth=(L + 2) / L), "names layer 5 of a model of 4 blocks"),
        (
            lambda frame: pd.concat([frame.assign(model=f"m{n}") for n in range(1001)]),
            "tells of 1,001 models",
        ),
    ],
)
def test_what_is_no_table_is_told(tmp_path, frame, spoil, words):
    with pytest.raises(MidblockError) as caught:
        read(tmp_path, spoil(frame))
    assert words in str(caught.value)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_table_of_an_earlier_version_has_no_states(tmp_path, frame, suffix):
    earlier = at(frame, "value", np.nan).astype({"value": float}).drop(columns="state")
    found = read(tmp_path, earlier, suffix).frame.state
    assert found.tolist() == ["not_defined" if row == 2 else "measured" for row in range(len(frame))]
