"""Pieces on disk: a pass that was killed goes on with the same rows."""

import time

import pytest
import torch
from safetensors.torch import save_file

from midblock.base import MidblockError
from midblock.trace import Pieces, RowStore


def fill(pieces, steps, last):
    for number in steps:
        for key in ("one", "another"):
            pieces.store.update(key, torch.tensor([number]), torch.full((1, 2), float(number)))
        pieces.step(number, last=number == last)


def rows(pieces):
    return {key: (found.index.tolist(), found.values.tolist()) for key, found in pieces.store.finish().items()}


@pytest.mark.parametrize("killed", range(6))
def test_rows_are_those_of_an_uninterrupted_pass(tmp_path, killed):
    whole = Pieces(RowStore(), None)
    fill(whole, range(1, 6), 5)
    first = Pieces(RowStore(), tmp_path, seconds=0)
    fill(first, range(1, killed + 1), 5)
    again = Pieces(RowStore(), tmp_path, seconds=0)
    assert again.restore() == killed
    fill(again, range(killed + 1, 6), 5)
    assert len(list(tmp_path.glob("*.safetensors"))) == 5
    assert rows(again) == rows(whole)


def test_a_piece_is_written_when_it_is_time_and_behind_the_last(tmp_path):
    pieces = Pieces(RowStore(), tmp_path)  # half a minute apart
    fill(pieces, range(1, 4), 4)
    assert not list(tmp_path.iterdir())
    pieces.saved = time.monotonic() - 31
    fill(pieces, [4, 5], 9)
    fill(pieces, [9], 9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000004.safetensors", "000009.safetensors"]
    assert Pieces(RowStore(), tmp_path).restore() == 9
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    pieces.step(9, last=True)  # nothing came since: the piece stays
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_without_a_folder_nothing_is_restored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pieces = Pieces(RowStore(), None, seconds=0)
    assert pieces.restore() == 0
    fill(pieces, [1, 2], 2)
    assert not list(tmp_path.iterdir())


def test_other_tensors_in_the_folder_are_no_pieces(tmp_path):
    fill(Pieces(RowStore(), tmp_path, seconds=0), [1, 2], 2)
    save_file({"layer.0": torch.ones(1, 4)}, tmp_path / "directions.safetensors")
    again = Pieces(RowStore(), tmp_path)
    assert again.restore() == 2
    assert rows(again).keys() == {"one", "another"}


def test_a_broken_piece_is_named(tmp_path):
    fill(Pieces(RowStore(), tmp_path, seconds=0), [1], 1)
    (tmp_path / "000001.safetensors").write_bytes(b"half of")
    with pytest.raises(MidblockError, match=r"cannot read .*000001\.safetensors: .* \(start again with --overwrite\)"):
        Pieces(RowStore(), tmp_path).restore()
