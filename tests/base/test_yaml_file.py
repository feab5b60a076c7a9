"""Settings from YAML that anyone wrote: what it says is what is read, or it is told in one line."""

import os
from itertools import pairwise

import pytest

from midblock.base import MidblockError
from midblock.base.yaml_file import LARGEST, read_settings

NAMES = "abcdefg"
BOMB = "a: &a [x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in pairwise(NAMES)
)


def said(file):
    with pytest.raises(MidblockError) as caught:
        read_settings(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
    return str(caught.value)


def test_plain_settings_are_read_as_they_are(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("\ufeffbase: a\ntuned: [b, c]\nseed: 0\nrate: 1.0e-8\nx: -3\nnone: null\nlayers: '01100'\n")
    found = {"base": "a", "tuned": ["b", "c"], "seed": 0, "rate": 1e-8, "x": -3, "none": None, "layers": "01100"}
    assert read_settings(file) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("n: 010", "line 1: YAML takes '010' for a number of another base"),
        ("a: 1\nn: 1:30", "line 2: YAML takes '1:30'"),
        ("n: 0x10", "of another base"),
        ("n: 1_000", "of another base"),
        ("n: 1:30.5", "of another base"),
        ("n: 2020-01-01", "for timestamp"),
        ("n: 2020-13-45", "for timestamp"),
        ("n: !!binary aGVsbG8=", "for binary"),
        ("n: !!set {a, b}", "for set"),
        ("n: !!python/object/apply:os.abort []", "YAML takes 'a list or mapping' for python/object"),
        ("n: 4\nn: 6", "line 2 says 'n' a second time"),
        ("? [a, b]\n: 3", "'a list or mapping' is no option"),
        ("3: 4", "'3' is no option"),
        ("null: 4", "'null' is no option"),
        ("a: &a [*a]", "more than 10,000 values"),
        (BOMB, "more than 10,000 values"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deep"),
        ("a: [", "is no YAML"),
        ("n: " + "9" * 5000, "one too long"),
        ("a: 1\n---\nb: 2", "is no YAML"),
        ("- a", "holds no settings"),
        ("", "holds no settings"),
    ],
)
def test_what_is_not_what_it_looks_like_is_told(tmp_path, text, words):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    assert words in said(file)


def test_what_is_no_file_is_told(tmp_path):
    assert "No such file" in said(tmp_path / "gone")
    assert "folder" in said(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "pipe" in said(tmp_path / "pipe")
    (tmp_path / "text").write_bytes("a: é".encode("latin-1"))
    assert "is no YAML" in said(tmp_path / "text")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", LARGEST + 1)
    assert "larger than 0.3 MB" in said(tmp_path / "large")
