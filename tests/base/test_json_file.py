import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midblock.base import MidblockError
from midblock.base.json_file import DEEPEST, parse_object, read_object

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), VALUES, max_size=5))
def test_what_json_writes_comes_back(content):
    assert parse_object(json.dumps(content), "here") == content


@pytest.mark.parametrize("layers", [DEEPEST + 1, 10**3, 10**5])
def test_depth_has_a_limit(layers):
    parse_object('{"a": ' + "[" * DEEPEST + "]" * DEEPEST + "}", "here")
    with pytest.raises(MidblockError, match="nested more than"):
        parse_object('{"a": ' + "[" * layers + "]" * layers + "}", "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": ' + "9" * 5000 + "}", "a number is too long"),
        ('{"a": {"b": [1, ' + "9" * 50 + "]}}", "'b' is a number that cannot be used"),
        ('{"a": NaN}', "'a' is a number that cannot be used"),
        ('{"a": 1, "a": 2}', "says 'a' twice"),
        ('{"a": {"b": [], "b": {}}}', "says 'b' twice"),
        ("[1]", "holds no JSON object"),
        ("null", "holds no JSON object"),
        ("{", "not readable JSON"),
        ("", "not readable JSON"),
        (b'{"a": "\xff"}', "not readable JSON"),
        (b'\xff\xfe{\x00}\x00', "not readable JSON"),
        (b'\xef\xbb\xbf{}', "not readable JSON"),
    ],
)  # fmt: skip
def test_beyond_the_limits_one_line(text, message):
    with pytest.raises(MidblockError, match=message) as raised:
        parse_object(text, "here")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


def test_the_same_said_twice_and_infinity_are_no_harm():
    assert parse_object('{"a": 1, "a": 1, "limit": [0.0, Infinity]}', "here") == {"a": 1, "limit": [0.0, float("inf")]}


def test_a_long_key_is_cut(tmp_path):
    with pytest.raises(MidblockError) as raised:
        parse_object('{"' + "k" * 10**6 + '": NaN}', "here")
    assert len(str(raised.value)) < 300


def planted(folder, kind):
    """What stands where a file should be."""
    place = folder / "x.json"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    elif kind == "ring of links":
        place.symlink_to(place)
    elif kind == "device":
        place.symlink_to("/dev/zero")
    elif kind == "long name":
        place = folder / ("x" * 300)
    elif kind == "zero byte":
        place = folder / "x\0y"
    return place


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
@pytest.mark.parametrize("kind", ["nothing", "pipe", "folder", "ring of links", "device", "long name", "zero byte"])
def test_what_is_no_file_is_told_before_it_is_opened(tmp_path, kind):
    with pytest.raises(MidblockError, match="cannot read"):
        read_object(planted(tmp_path, kind))


def test_a_file(tmp_path):
    (tmp_path / "x.json").write_text('{"größer": 1}', encoding="utf-8")
    (tmp_path / "link.json").symlink_to(tmp_path / "x.json")
    assert read_object(tmp_path / "link.json") == {"größer": 1}
