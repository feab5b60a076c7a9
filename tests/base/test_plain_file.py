"""Reading files that others named."""

import tracemalloc

import pytest

from midblock.base import MidblockError
from midblock.base.plain_file import PIECE, read_at_most, read_bytes


@pytest.mark.parametrize("size", [0, 1, 9, PIECE, 2 * PIECE + 3])
@pytest.mark.parametrize("count", [0, 1, 10, PIECE, 3 * PIECE])
def test_no_more_than_asked_for(tmp_path, size, count):
    content = (bytes(range(256)) * (size // 256 + 1))[:size]
    (tmp_path / "file").write_bytes(content)
    with open(tmp_path / "file", "rb") as stream:
        assert read_at_most(stream, count) == content[:count]


def test_memory_is_set_aside_for_what_is_there(tmp_path):
    file = tmp_path / "small.json"
    file.write_bytes(b"[]")
    tracemalloc.start()
    try:
        assert read_bytes(file, 2**30) == b"[]"
        assert tracemalloc.get_traced_memory()[1] < 4 * PIECE
    finally:
        tracemalloc.stop()
    with pytest.raises(MidblockError, match="larger than"):
        read_bytes(file, 1)
