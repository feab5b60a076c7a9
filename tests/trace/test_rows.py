import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from midblock.base import MidblockError
from midblock.trace import Rows, RowStore
from midblock.trace.room import Room, on_disk

N, D = 12, 3
VALUES = torch.randn(N, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def cut(order, ends):
    """Parts of `order`, ending at the given places."""
    edges = sorted({0, len(order), *ends})
    return [torch.tensor(order[start:end]) for start, end in pairwise(edges)]


splits = st.tuples(st.permutations(range(N)), st.lists(st.integers(0, N), max_size=6))


@given(splits)
def test_any_chunks_in_any_order_are_the_whole(split):
    rows = Rows()
    for index in cut(*split):
        rows.update(index, VALUES[index])
    whole = rows.finish()
    assert whole.index.tolist() == list(range(N))
    assert torch.equal(whole.values, VALUES)


@given(splits, st.sets(st.integers(0, N)))
def test_a_store_restored_from_its_pieces_is_the_whole(split, saves):
    store, pieces = RowStore(), []
    for place, index in enumerate(cut(*split)):
        store.update("pooled|0|base", index, VALUES[index])
        store.update("lens|0|sft", index, VALUES[index, 0])
        if place in saves:
            pieces.append(store.take_unsaved())
    pieces.append(store.take_unsaved())
    again = RowStore()
    for piece in reversed(pieces):
        again.restore(piece)
    for finished in (store.finish(), again.finish()):
        assert finished.keys() == {"pooled|0|base", "lens|0|sft"}
        assert torch.equal(finished["pooled|0|base"].values, VALUES)
        assert torch.equal(finished["lens|0|sft"].values, VALUES[:, 0])


def test_nothing_is_handed_out_twice():
    store = RowStore()
    store.update("a", torch.tensor([0]), VALUES[:1])
    assert set(store.take_unsaved()) == {"index/a", "values/a"}
    assert store.take_unsaved() == {}


def test_a_sample_counted_twice():
    rows = Rows()
    rows.update(torch.tensor([3, 5]), VALUES[:2])
    rows.update(torch.tensor([5]), VALUES[:1])
    with pytest.raises(MidblockError, match="sample 5 was counted twice"):
        rows.finish()


def test_no_samples():
    with pytest.raises(MidblockError, match="no samples"):
        Rows().finish()
    assert RowStore().finish() == {}


def test_a_finished_store_holds_no_rows():
    store = RowStore()
    store.update("a", torch.tensor([0]), VALUES[:1])
    store.finish()
    assert store.rows == {}


@given(splits)
def test_rows_on_disk_are_those_in_memory(split):
    room = Room(limit=5 * D * 8)
    store = RowStore(room=room)
    for index in cut(*split):
        store.update("pooled|0|base", index, VALUES[index])
        store.update("sinks|0|base", index, VALUES[index] > 0)
    found = store.finish()
    assert on_disk(found["pooled|0|base"].values)
    assert torch.equal(found["pooled|0|base"].values, VALUES)
    assert torch.equal(found["sinks|0|base"].values, VALUES > 0)
    assert 0 <= room.taken <= room.limit


def test_room_in_memory_is_counted_back():
    room = Room(limit=100)
    first = room.take((10,), torch.float64)
    second = room.take((10,), torch.float64)
    assert (on_disk(first), on_disk(second), room.taken) == (False, True, 80)
    room.give(second)
    room.give(first)
    assert room.taken == 0


def test_a_place_for_temporary_files_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(MidblockError, match=r"cannot write .*nowhere"):
        Room(limit=0).take((10,), torch.float64)


def test_memory_does_not_grow_with_rows_on_disk():
    """Measured in a process of its own: 64 MB of rows, of which 1 MB may lie in memory."""
    program = """
import torch
from midblock.trace import RowStore
from midblock.trace.room import Room

def own():  # what is the process' own, without pages of files
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1])

store, values = RowStore(room=Room(limit=2**20)), torch.ones(64, 1024, dtype=torch.float64)
before = own()
for start in range(0, 8192, 64):
    store.update("pooled", torch.arange(start, start + 64), values + start)
found = store.finish()["pooled"].values
assert found[:, 0].tolist() == [1.0 + place // 64 * 64 for place in range(8192)]
print(own() - before)
"""
    status = Path("/proc/self/status")
    if not status.exists() or "RssAnon" not in status.read_text():
        pytest.skip("the system tells no process' own memory")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 24 * 1024
