import errno
import json
import os
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save

import midblock
from midblock.base import MidblockError, replace_atomically, user_path, write_json
from midblock.base.files import folder_atomically, size_text, sweep, unfinished, write_failure


def write_half(path, raised):
    with replace_atomically(path) as temporary:
        temporary.write_text("half")
        raise raised


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_whole_and_alone(tmp_path):
    path = tmp_path / "deep" / "down" / "x.txt"
    with replace_atomically(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert leftovers(path.parent) == ["x.txt"]


@pytest.mark.parametrize("raised", [ValueError("bug"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_what_stood_there_survives_a_failed_write(tmp_path, raised):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(MidblockError if isinstance(raised, OSError) else type(raised)):
        write_half(path, raised)
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == ["x.txt"]


WRITERS = {
    "x.json": lambda path: path.write_text("[1, 2]"),
    "x.csv": lambda path: pd.DataFrame({"a": [1.0]}).to_csv(path),
    "x.parquet": lambda path: pd.DataFrame({"a": [1.0]}).to_parquet(path),
    "x.safetensors": lambda path: path.write_bytes(save({"a": torch.ones(9)})),
}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_says_so_and_keeps_the_old_file(tmp_path, name):
    path = tmp_path / name
    path.write_text("old")
    # The temporary file is a device that has no space left, so the system itself refuses.
    path.with_name(f".{name}.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(MidblockError, match=f"no space left for .*{name} .*run it again") as caught:  # noqa: SIM117
        with replace_atomically(path) as temporary:
            WRITERS[name](temporary)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == [name]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MidblockError, match=r"cannot write .*file/x\.txt: "):  # noqa: SIM117
        with replace_atomically(tmp_path / "file" / "x.txt") as temporary:
            temporary.write_text("never")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(MidblockError, match=r"cannot write .*: Permission denied"):
        write_json(tmp_path / "x.json", {})
    tmp_path.chmod(0o700)


def test_json_is_plain_utf8_and_never_nan(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1, None], "path": tmp_path})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1, None], "path": str(tmp_path)}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text())["a"] == [1, None]
    assert leftovers(tmp_path) == ["x.json"]


def test_a_full_disk_is_known_by_what_safetensors_says():
    error = Exception("Error while serializing: I/O error: No space left on device (os error 28)")
    assert str(write_failure(Path("x"), error)) == "no space left for x (free some and run it again)"


def test_sizes_have_a_unit_that_suits_them():
    assert [size_text(count) for count in (0, 3 * 2**19, 2**30, 5 * 2**29)] == [
        "0.0 MiB",
        "1.5 MiB",
        "1.0 GiB",
        "2.5 GiB",
    ]


def test_what_stood_there_comes_back_when_the_new_folder_cannot_take_its_name(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept.txt").write_text("x")
    with pytest.raises(MidblockError), folder_atomically(tmp_path / "out") as made:
        made.rmdir()
    assert (tmp_path / "out" / "kept.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_killed_processes_left_is_swept_and_nothing_else(tmp_path):
    ours = [".layers.csv.4711.tmp", ".adapter.1.partial", f".own.{os.getpid()}.tmp"]
    others = ["layers.csv.4711.tmp", ".layers.csv.tmp", ".git", ".x.y.tmp", ".cache.12.tmp.bak"]
    for name in (*ours, *others):
        (tmp_path / name).mkdir() if "partial" in name else (tmp_path / name).write_text("")
    assert [path.name for path in unfinished(tmp_path, "adapter")] == [".adapter.1.partial"]
    sweep(tmp_path, "layers.csv")
    assert leftovers(tmp_path) == sorted([*ours[1:], *others])
    sweep(tmp_path)
    assert leftovers(tmp_path) == sorted(others)


def test_what_stood_there_comes_back_after_a_kill_between_two_renames(tmp_path):
    (tmp_path / ".out.4711.partial" / "before").mkdir(parents=True)
    (tmp_path / ".out.4711.partial" / "before" / "kept.txt").write_text("x")
    sweep(tmp_path, "out")
    assert (tmp_path / "out" / "kept.txt").exists()
    assert leftovers(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "text", ["plain", "a/b", "~/x", "x" * 255, "no/such/folder/x.jsonl", "", "größer", "a" * 200 + "/b"]
)
def test_places_that_may_be_there(text):
    assert user_path(text).exists() in (True, False)
    assert "~" not in str(user_path(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("~nosuchuser/x.jsonl", "cannot look at '~nosuchuser/x.jsonl': could not determine home directory"),
        ("x" * 256, "cannot look at 'xxx.*…: file name too long"),
        ("a/" * 3000, "file name too long"),
        ("a\0b", "null byte"),
        ("half \ud800", "surrogates not allowed"),
    ],
)
def test_places_that_cannot_be(text, message):
    with pytest.raises(MidblockError, match=message) as raised:
        user_path(text)
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < 400


def test_a_place_that_leads_to_itself(tmp_path):
    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    with pytest.raises(MidblockError, match="too many levels of symbolic links"):
        user_path(tmp_path / "ring" / "x")


def test_every_place_is_read_by_the_one_function():
    source = Path(midblock.__file__).parent
    found = [
        file.name
        for file in source.rglob("*.py")
        if "expanduser" in file.read_text() or "Path.home" in file.read_text()
    ]
    assert found == ["files.py"]
