"""Pieces on disk: a pass that was killed goes on with the same rows."""

import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

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


def emptied(file, other):
    file.write_bytes(b"")


def cut(file, other):
    file.write_bytes(file.read_bytes()[:-9])


def flipped(file, other):
    data = bytearray(file.read_bytes())
    data[-3] ^= 4
    file.write_bytes(bytes(data))


def renumbered(file, other):
    before = file.read_bytes()
    file.write_bytes(before.replace(b'first\\": 3', b'first\\": 1'))
    assert file.read_bytes() != before


def gone(file, other):
    file.unlink()


def repeated(file, other):
    file.write_bytes((file.parent / "000002.safetensors").read_bytes())


@pytest.mark.parametrize("fault", [emptied, cut, flipped, renumbered, gone, repeated])
def test_from_a_broken_piece_on_steps_are_done_again(tmp_path, fault):
    fill(Pieces(RowStore(), tmp_path, seconds=0), range(1, 6), 5)
    fault(tmp_path / "000003.safetensors", tmp_path)
    again = Pieces(RowStore(), tmp_path, seconds=0)
    assert again.restore() == 2
    assert sorted(file.stem for file in tmp_path.iterdir()) == ["000001", "000002"]
    assert len(again.notes) == 1
    assert "from step 3 on it was done again" in again.notes[0]
    for number in range(3, 6):
        fill(again, [number], 5)
    whole = Pieces(RowStore(), None)
    fill(whole, range(1, 6), 5)
    assert rows(again) == rows(whole)


def restored(folder):
    pieces = Pieces(RowStore(), folder)
    try:
        return pieces.restore(), len(pieces.notes)
    except MidblockError as error:
        return error.what


def test_no_flipped_bit_is_believed(tmp_path):
    fill(Pieces(RowStore(), tmp_path, seconds=0), [1, 2], 2)
    file = tmp_path / "000002.safetensors"
    whole, found = file.read_bytes(), []
    for place in range(0, len(whole), 3):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        found.append(restored(tmp_path))
    others = [each for each in found if each != (1, 1)]  # the flip hit the name under which the seal stands
    assert len(others) < 6
    assert all("does not say what it holds" in str(each) for each in others)


def without_rows(file):
    save_file({}, file)


def without_seal(file):
    save_file(load_file(file), file)


@pytest.mark.parametrize(("change", "owner", "said"), [
    (without_rows, "ours", "does not say what it holds"),
    (without_seal, "ours", "does not say what it holds"),
    (lambda file: None, "theirs", "was kept by another run"),
])  # fmt: skip
def test_what_another_run_kept_is_refused_wherever_it_lies(tmp_path, change, owner, said):
    fill(Pieces(RowStore(), tmp_path / "theirs", 0, owner), range(1, 6), 5)
    fill(Pieces(RowStore(), tmp_path / "ours", 0, "ours"), range(1, 6), 5)
    foreign = tmp_path / "ours" / "000004.safetensors"
    shutil.copy(tmp_path / "theirs" / foreign.name, foreign)
    change(foreign)
    (tmp_path / "ours" / "000002.safetensors").write_bytes(b"damaged")
    with pytest.raises(MidblockError, match=rf"000004.safetensors {said}.* \(remove it, or begin again with --over"):
        Pieces(RowStore(), tmp_path / "ours", owner="ours").restore()
    assert len(list((tmp_path / "ours").iterdir())) == 5


def test_a_piece_of_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("midblock.base.seal.FORMAT", 2)
    fill(Pieces(RowStore(), tmp_path, seconds=0), [1], 1)
    monkeypatch.undo()
    with pytest.raises(MidblockError, match="has format 2, this version of midblock reads 1"):
        Pieces(RowStore(), tmp_path).restore()
