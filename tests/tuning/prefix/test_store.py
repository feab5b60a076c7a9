"""Activations on disk: what is whole stays, what a killed process left half does not count, a full disk is one line."""

import itertools
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from midblock.base import MidblockError
from midblock.tuning.prefix.store import PrefixStore

LENGTHS, WIDTH = [3, 1, 5, 2], 8


def states_of(examples, tokens, dtype=torch.float32):
    """States that tell example, position and channel, and junk behind each example's end."""
    made = torch.full((len(examples), tokens, WIDTH), float("nan"), dtype=dtype)
    for row, example in enumerate(examples):
        for position in range(LENGTHS[example]):
            made[row, position] = 100 * (example + 1) + 10 * position + torch.arange(WIDTH)
    return made


def mask_of(examples, tokens):
    return (torch.arange(tokens)[None] < torch.tensor([LENGTHS[example] for example in examples])[:, None]).long()


def write(store, examples, tokens=5):
    dtype = store.states.dtype
    store.write(torch.tensor(examples), mask_of(examples, tokens), states_of(examples, tokens, dtype))


def opened(folder, key="weights a", dtype=torch.float32, lengths=LENGTHS, width=WIDTH):
    return PrefixStore.open(folder, lengths, width, dtype, key)


def run_script(script, *arguments):
    code = textwrap.dedent(script)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finished(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_was_written_comes_back_bit_by_bit_in_any_batch(tmp_path, dtype):
    store = opened(tmp_path, dtype=dtype)
    write(store, [2, 0])
    write(store, [3])
    got = store.read(torch.tensor([0, 3]), 4)
    expected = states_of([0, 3], 4, dtype).nan_to_num(0.0)
    assert got.dtype == dtype
    assert torch.equal(got, expected)
    assert not got[0, 3].any(), "behind an example's end there are zeros"


@given(order=st.permutations(range(4)), cuts=st.sets(st.integers(1, 3)))
def test_batches_in_any_order_fill_the_store_alike(tmp_path_factory, order, cuts):
    store = opened(tmp_path_factory.mktemp("store"))
    edges = [0, *sorted(cuts), 4]
    for start, stop in itertools.pairwise(edges):
        assert not store.has(torch.tensor(order[start:stop]))
        write(store, order[start:stop])
    assert torch.equal(store.read(torch.arange(4), 5), states_of(range(4), 5).nan_to_num(0.0))


def test_has_wants_every_example(tmp_path):
    store = opened(tmp_path)
    write(store, [1, 2])
    assert store.has(torch.tensor([2, 1]))
    assert not store.has(torch.tensor([2, 0]))
    with pytest.raises(ValueError, match="has not been written"):
        store.read(torch.tensor([0]), 5)


def test_reading_never_cuts_an_example(tmp_path):
    store = opened(tmp_path)
    write(store, [2])
    with pytest.raises(ValueError, match="5 tokens does not fit into 4"):
        store.read(torch.tensor([2]), 4)


def test_an_example_that_is_whole_is_not_written_again(tmp_path):
    store = opened(tmp_path)
    write(store, [0])
    store.write(torch.tensor([0]), mask_of([0], 3), torch.zeros(1, 3, WIDTH))
    assert torch.equal(store.read(torch.tensor([0]), 3), states_of([0], 3))


def test_the_same_key_goes_on_where_it_stopped(tmp_path):
    write(opened(tmp_path), [0, 2])
    again = opened(tmp_path)
    assert (again.whole > 0).tolist() == [True, False, True, False]
    assert torch.equal(again.read(torch.tensor([2]), 5), states_of([2], 5))


@pytest.mark.parametrize(
    "change",
    [
        {"key": "weights b"},
        {"dtype": torch.bfloat16},
        {"lengths": [3, 1, 2, 5]},
        {"lengths": [3, 1, 5, 2, 0]},
        {"width": 4},
    ],
    ids=str,
)
def test_anything_else_starts_over(tmp_path, change):
    old = opened(tmp_path)
    write(old, [0, 1, 2, 3])
    new = opened(tmp_path, **change)
    assert not new.whole.any()
    assert not new.states.any()
    # Who still has the old files mapped keeps them.
    assert torch.equal(old.read(torch.tensor([2]), 5), states_of([2], 5))


@pytest.mark.parametrize("damage", ["states.bin", "whole.bin", "store.json"])
def test_a_damaged_folder_starts_over(tmp_path, damage):
    write(opened(tmp_path), [0])
    path = tmp_path / damage
    path.write_bytes(path.read_bytes()[:-2])
    assert not opened(tmp_path).whole.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("file", ["states.bin", "whole.bin"])
def test_one_flipped_bit_is_not_believed(tmp_path, file, dtype):
    """Anywhere: the example that it hits is computed anew, the others are read."""
    whole = opened(tmp_path, dtype=dtype)
    write(whole, [0, 2])
    kept = (tmp_path / file).read_bytes()
    hit = set()
    for at in range(len(kept)):
        changed = bytearray(kept)
        changed[at] ^= 1 << at % 8
        (tmp_path / file).write_bytes(changed)
        store = opened(tmp_path, dtype=dtype)
        missing = [example for example in (0, 2) if not store.has(torch.tensor([example]))]
        assert len(missing) <= 1
        hit |= set(missing)
        if missing:
            write(store, missing)
        for example in (0, 2):
            tokens = LENGTHS[example]
            assert torch.equal(store.read(torch.tensor([example]), tokens), states_of([example], tokens, dtype))
        for example in (1, 3):
            assert not store.has(torch.tensor([example]))
    assert hit == {0, 2}


def test_bytes_are_what_lies_on_disk(tmp_path):
    store = opened(tmp_path, dtype=torch.bfloat16)
    assert store.bytes == sum(LENGTHS) * WIDTH * 2 + len(LENGTHS) * 8
    assert store.bytes == sum((tmp_path / name).stat().st_size for name in ("states.bin", "whole.bin"))


def test_blocks_are_reserved_when_the_store_is_made(tmp_path):
    if not hasattr(os, "posix_fallocate"):
        pytest.skip("no posix_fallocate here")
    opened(tmp_path, lengths=[1 << 15], width=8)
    assert (tmp_path / "states.bin").stat().st_blocks * 512 >= 1 << 20


def test_states_of_another_type_or_width_are_refused(tmp_path):
    store = opened(tmp_path)
    with pytest.raises(MidblockError, match="bfloat16"):
        store.write(torch.tensor([0]), mask_of([0], 3), states_of([0], 3, torch.bfloat16))
    with pytest.raises(MidblockError, match="they are 7"):
        store.write(torch.tensor([0]), mask_of([0], 3), states_of([0], 3)[..., :7])
    assert not store.whole.any()


@pytest.mark.parametrize(
    "mask", [[1, 1, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1], [1, 1]], ids=["short", "left padded", "long", "cut"]
)
def test_a_mask_that_does_not_fit_its_example_is_refused(tmp_path, mask):
    store = opened(tmp_path)
    good = [int(position < 1) for position in range(len(mask))]
    with pytest.raises(MidblockError, match="example 0 was to be 3 tokens"):
        store.write(torch.tensor([1, 0]), torch.tensor([good, mask]), torch.zeros(2, len(mask), WIDTH))


def test_no_tokens_at_all_is_an_error(tmp_path):
    with pytest.raises(MidblockError, match="no tokens"):
        opened(tmp_path, lengths=[])


# Ends the process at the n-th line that the store's file runs inside `write`, for n = 1, 2, 3, …
KILLED = """
    import os, sys
    from pathlib import Path
    import torch
    from midblock.tuning.prefix.store import PrefixStore

    def killed_at(n):
        left = n
        def trace(frame, event, argument):
            nonlocal left
            if not frame.f_code.co_filename.endswith("prefix/store.py"):
                return None
            left -= event == "line"
            if left == 0:
                os._exit(9)
            return trace
        return trace

    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    for n in range(1, 200):
        folder = Path(sys.argv[1]) / str(n)
        store = PrefixStore.open(folder, [3, 1, 5, 2], 8, torch.float32, "weights a")
        child = os.fork()
        if not child:
            sys.settrace(killed_at(n))
            store.write(torch.tensor([0, 2]), mask, torch.full((2, 5, 8), 7.0))
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            print(n)
            break
"""


def test_a_process_killed_anywhere_leaves_no_half_example_that_looks_whole(tmp_path):
    steps = int(finished(run_script(KILLED, tmp_path)))
    seen = set()
    for n in range(1, steps + 1):
        store = opened(tmp_path / str(n))
        whole = store.whole.nonzero().flatten()
        seen.add(len(whole))
        for example in whole.tolist():
            tokens = LENGTHS[example]
            assert (store.read(torch.tensor([example]), tokens) == 7).all(), f"killed at line {n}"
        write(store, [0, 2])
        assert store.has(torch.tensor([0, 2]))
    assert seen == {0, 1, 2}, "the kills fell before, between and after the two examples"


WRITER = """
    import sys
    from pathlib import Path
    import torch
    from midblock.tuning.prefix.store import PrefixStore

    rank = int(sys.argv[2])
    store = PrefixStore.open(Path(sys.argv[1]), [2] * 40, 8, torch.bfloat16, "weights a")
    for example in [*range(rank, 40, 2), 0]:
        states = torch.full((1, 3, 8), float(example), dtype=torch.bfloat16)
        store.write(torch.tensor([example]), torch.tensor([[1, 1, 0]]), states)
"""


def test_processes_fill_one_store_together(tmp_path):
    for process in [run_script(WRITER, tmp_path, rank) for rank in (0, 1)]:
        finished(process)
    store = opened(tmp_path, dtype=torch.bfloat16, lengths=[2] * 40)
    got = store.read(torch.arange(40), 2)
    assert torch.equal(got, torch.arange(40, dtype=torch.bfloat16)[:, None, None].expand(40, 2, 8))


def test_one_process_sees_at_once_what_another_wrote(tmp_path):
    mine, other = opened(tmp_path), opened(tmp_path)
    write(other, [2])
    assert mine.has(torch.tensor([2]))
    assert torch.equal(mine.read(torch.tensor([2]), 5), states_of([2], 5))


LIMITED = """
    import resource, sys
    from pathlib import Path
    import torch
    from midblock.base import MidblockError
    from midblock.tuning.prefix.store import PrefixStore

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        PrefixStore.open(Path(sys.argv[1]), [1000] * 4, 8, torch.float32, "weights a")
    except MidblockError as error:
        print(error)
"""


def test_a_file_the_system_refuses_is_one_line_and_leaves_nothing(tmp_path):
    pytest.importorskip("resource")
    message = finished(run_script(LIMITED, tmp_path))
    assert message.startswith(f"cannot write {tmp_path}")
    assert message.count("\n") == 1
    assert not list(tmp_path.glob("*.bin"))


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of one megabyte; only root may mount one."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "midblock", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no small disk can be mounted here")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_full_disk_shows_when_the_store_is_made(small_disk):
    if not hasattr(os, "posix_fallocate"):
        pytest.skip("no posix_fallocate here")
    with pytest.raises(MidblockError, match="no space left"):
        opened(small_disk / "store", lengths=[1 << 16], width=8)
    assert not list(small_disk.rglob("*.bin")), "what was reserved is given back"
    store = opened(small_disk / "store")  # what fits still fits
    write(store, [0])


def test_a_place_that_is_no_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MidblockError, match="cannot write"):
        opened(Path(tmp_path / "file" / "store"))
