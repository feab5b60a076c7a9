import json
import os
import socket

import pyarrow
import pyarrow.parquet
import pytest

from midblock.base import MidblockError
from midblock.data.files import read_file

RECORDS = [{"text": f"row {number}"} for number in range(5)]


@pytest.fixture
def parquet(tmp_path):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)
    return path


def test_jsonl(write_jsonl):
    rows = read_file(write_jsonl(RECORDS))
    assert (rows.count, rows.columns) == (5, ("text",))
    assert rows.take([3, 1]) == [RECORDS[3], RECORDS[1]]


def test_parquet(parquet):
    rows = read_file(parquet)
    assert (rows.count, rows.columns) == (5, ("text",))
    assert rows.take([3, 1]) == [RECORDS[3], RECORDS[1]]
    assert rows.take([]) == []


def test_parquet_with_nested_messages(tmp_path):
    records = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "chat.parquet")
    assert read_file(tmp_path / "chat.parquet").take([0]) == records


@pytest.mark.parametrize("indent", [None, 2])
def test_json_list(tmp_path, indent):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(RECORDS, indent=indent))
    assert read_file(path).take([4]) == [RECORDS[4]]


def test_json_lines_by_the_name_json(write_jsonl):
    assert read_file(write_jsonl(RECORDS, "rows.json")).count == 5


def test_blank_lines_crlf_byte_order_mark_and_unicode_line_separators(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('\ufeff{"text": "a\u2028b"}\r\n\r\n{"text": "c"}'.encode())
    assert read_file(path).take([0, 1]) == [{"text": "a\u2028b"}, {"text": "c"}]


@pytest.mark.parametrize("line", ['{"text": "cut', '{"text": "a"} {"text": "b"}', "\x00", "{'text': 'a'}"])
def test_a_broken_line_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(MidblockError, match=r"rows\.jsonl, line 3 is no valid JSON"):
        read_file(path)


def test_another_encoding_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"text": "Grüße"}\n'.encode("latin-1"))
    with pytest.raises(MidblockError, match=r"line 1 is no valid JSON: 'utf-8' codec"):
        read_file(path)


@pytest.mark.parametrize("line", ['"text"', "[1, 2]", "null"])
def test_a_record_that_is_no_object(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(MidblockError, match=r"row 2 is a JSON .*, not an object"):
        read_file(path)


@pytest.mark.parametrize(("name", "content"), [("rows.jsonl", ""), ("rows.jsonl", "\n\n"), ("rows.json", "[]")])
def test_an_empty_file(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(MidblockError, match="holds no rows"):
        read_file(tmp_path / name)


def test_an_empty_table(tmp_path):
    schema = pyarrow.schema({"text": pyarrow.string()})
    pyarrow.parquet.write_table(schema.empty_table(), tmp_path / "rows.parquet")
    with pytest.raises(MidblockError, match="holds no rows"):
        read_file(tmp_path / "rows.parquet")


def test_a_truncated_parquet(parquet):
    whole = parquet.read_bytes()
    for size in (0, 3, len(whole) // 2, len(whole) - 1):
        parquet.write_bytes(whole[:size])
        with pytest.raises(MidblockError, match=r"rows\.parquet is broken or no Parquet file: "):
            read_file(parquet)


def test_a_parquet_with_damaged_pages(parquet):
    whole = bytearray(parquet.read_bytes())
    whole[4:60] = bytes(56)
    parquet.write_bytes(whole)
    with pytest.raises(MidblockError, match="is broken or no Parquet file"):
        read_file(parquet).take([0])


def test_a_missing_file_names_the_nearest(write_jsonl):
    path = write_jsonl(RECORDS, "train.jsonl")
    with pytest.raises(MidblockError, match=r"no dataset at .*trian\.jsonl \(did you mean .*train\.jsonl\?\)"):
        read_file(path.with_name("trian.jsonl"))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(MidblockError, match=r"there is no folder .*nowhere"):
        read_file(tmp_path / "nowhere" / "rows.jsonl")


def test_another_kind_of_file(tmp_path):
    (tmp_path / "rows.csv").write_text("text\na\n")
    with pytest.raises(MidblockError, match=r"is no dataset file \(convert it to one of .jsonl, .json, .parquet\)"):
        read_file(tmp_path / "rows.csv")


def test_json_nested_too_deeply_is_refused_with_its_line(tmp_path):
    file = tmp_path / "deep.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n' + "[" * 200_000)
    with pytest.raises(MidblockError, match="line 2 is nested too deeply"):
        read_file(file)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize(("name", "indent"), [("rows.json", 2), ("rows.json", None), ("rows.jsonl", None)])
def test_encodings_that_json_may_have(tmp_path, encoding, name, indent):
    text = json.dumps(RECORDS, indent=indent) if name == "rows.json" else "\n".join(map(json.dumps, RECORDS))
    (tmp_path / name).write_bytes(text.replace("\n", "\r\n").encode(encoding))
    assert read_file(tmp_path / name).take(range(5)) == RECORDS


def test_a_broken_utf_16_is_named(tmp_path):
    (tmp_path / "rows.json").write_bytes('[{"text": "a"}]'.encode("utf-16")[:-1])
    with pytest.raises(MidblockError, match=r"is no valid UTF-16: .*save it as UTF-8"):
        read_file(tmp_path / "rows.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_what_is_no_file_is_never_opened(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(MidblockError, match=r"it is a pipe, no file"):
        read_file(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(MidblockError, match=r"it is a device, no file"):
        read_file(tmp_path / name)
    (tmp_path / name).unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / name))
        with pytest.raises(MidblockError, match=r"it is a socket, no file"):
            read_file(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": ' + b"9" * 5000 + b"}", "line 2 is no valid JSON: Exceeds the limit"),
        (b'{"text": "\xff"}', "line 2 is no valid JSON: 'utf-8' codec"),
        (b'{"text": "a\x00b"}', "line 2 is no valid JSON: Invalid control character"),
        (b'{"a": ' * 3000, "line 2 is nested too deeply"),
    ],
)
def test_lines_that_cannot_be_read_are_named(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(MidblockError, match=message) as raised:
        read_file(path)
    assert len(str(raised.value)) < 300


def test_a_line_without_end(write_jsonl, monkeypatch):
    monkeypatch.setattr("midblock.data.json_lines.LONGEST", 40)
    read_file(write_jsonl(RECORDS))
    with pytest.raises(MidblockError, match=r"line 2 is longer than 0\.0 MiB"):
        read_file(write_jsonl([*RECORDS[:1], {"text": "x" * 40}]))


def test_what_is_read_whole_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("midblock.data.json_lines.WHOLE", 40)
    for name, content in (
        ("list.json", json.dumps(RECORDS).encode()),
        ("wide.jsonl", '{"a": 1}\n'.encode("utf-16") * 9),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MidblockError, match=r"would have to be read whole \(write it as \.jsonl in UTF-8"):
            read_file(tmp_path / name)


def test_lines_are_read_again_where_they_begin(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\n{"text": "gr\xc3\xb6\xc3\x9fer"}\r\n\n  \n{"text": "b"}\n{"text": "c"}')
    rows = read_file(path)
    assert rows.take([2, 0, 2, 1]) == [{"text": text} for text in ("c", "größer", "c", "b")]


def test_a_file_that_changed_meanwhile(write_jsonl):
    path = write_jsonl(RECORDS)
    rows = read_file(path)
    path.write_text("{}")
    with pytest.raises(MidblockError, match="line 5 is no valid JSON"):
        rows.take([4])


def test_only_the_rows_and_columns_asked_for_are_decoded(tmp_path):
    path = tmp_path / "rows.parquet"
    table = pyarrow.table({"text": [str(n) for n in range(500)], "other": ["x"] * 500})
    pyarrow.parquet.write_table(table, path, row_group_size=150)
    at = [499, 3, 150, 149, 3, 300, 65]
    assert read_file(path).take(at, ("text",)) == [{"text": str(n)} for n in at]
    assert read_file(path).take(range(500)) == table.to_pylist()
    whole = bytearray(path.read_bytes())
    first = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(0)
    start = first.dictionary_page_offset or first.data_page_offset
    whole[start : start + first.total_compressed_size] = bytes(first.total_compressed_size)
    path.write_bytes(whole)  # a group that nothing is asked of
    assert read_file(path).take([0, 301], ("text",)) == [{"text": "0"}, {"text": "301"}]
    with pytest.raises(MidblockError, match="is broken or no Parquet file"):
        read_file(path).take([150])


def test_rows_that_nobody_can_draw_from(parquet, monkeypatch):
    monkeypatch.setattr("midblock.data.files.MOST_ROWS", 4)
    with pytest.raises(MidblockError, match=r"holds 5 rows; at most 4 can be drawn from"):
        read_file(parquet)
