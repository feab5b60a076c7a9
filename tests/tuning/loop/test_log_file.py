"""The log survives a kill in the middle of a line, and is cut back to where training goes on."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midblock.base import MidblockError
from midblock.tuning.loop.log_file import LogFile


@pytest.fixture
def log(tmp_path):
    return LogFile(tmp_path / "log.jsonl")


def line(step, **more):
    numbers = {"loss": 1.0 / step, "nll": 1.0, "tokens": 9 * step, "seconds": 0.5}
    return {"step": step, **numbers, "gradient_by_block": {"0": 0.5}, **more}


def test_what_was_appended_is_read(log):
    assert log.read() == ()
    lines = [line(step, note="Grüße\u2028北京") for step in (1, 2, 3)]
    for each in lines:
        log.append(each)
    assert list(log.read()) == lines
    assert [json.loads(text) for text in log.path.read_text().splitlines()] == lines


@pytest.mark.parametrize("lost", range(1, 45))
def test_half_a_line_at_the_end_is_passed_over(log, lost):
    log.append(line(1))
    log.append(line(2))
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[:-lost])
    expected = (line(1), line(2)) if lost == 1 else (line(1),)
    assert log.read() == expected


def test_half_a_character_at_the_end_is_passed_over(log):
    log.append(line(1))
    with log.path.open("ab") as file:
        file.write('{"note": "ü'.encode()[:-1])
    assert log.read() == (line(1),)


def test_cut_drops_what_lies_beyond_the_step(log):
    for step in (1, 2, 3, 4):
        log.append(line(step))
    assert log.cut(2) == (line(1), line(2)) == log.read()
    log.append(line(3))
    assert [each["step"] for each in log.read()] == [1, 2, 3]


@pytest.mark.parametrize("lost", [1, 5])
def test_after_cutting_the_next_line_stands_on_its_own(log, lost):
    """Also behind a line that a kill left without its end, or without its newline alone."""
    for step in (1, 2, 3):
        log.append(line(step))
    log.path.write_bytes(log.path.read_bytes()[:-lost])
    log.cut(3)
    log.append(line(4))
    steps = [each["step"] for each in log.read()]
    assert steps == ([1, 2, 3, 4] if lost == 1 else [1, 2, 4])


def test_cutting_to_the_start_empties_it(log):
    log.append(line(1))
    assert log.cut(0) == () == log.read()


def test_cutting_where_there_is_no_log_makes_an_empty_one(log):
    assert log.cut(5) == ()
    assert log.path.read_bytes() == b""


def test_a_number_that_is_none_is_not_written(log):
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.append(line(1, norm=float("nan")))
    assert log.read() == ()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(MidblockError, match=r"cannot write .*log\.jsonl"):
        LogFile(tmp_path / "nowhere" / "log.jsonl").append(line(1))


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_come_back_bit_for_bit(value, tmp_path_factory):
    log = LogFile(tmp_path_factory.mktemp("log") / "log.jsonl")
    log.append({**line(1), "loss": value})
    log.cut(1)
    assert log.read()[0]["loss"] == value


@pytest.mark.parametrize(
    "damaged",
    [
        '{"step": 2}',
        json.dumps(line(2, loss=None)),
        json.dumps(line(2, loss="0.5")),
        json.dumps(line(2, tokens=float("nan"))),
        json.dumps(line(2, seconds=True)),
        json.dumps(line(2, gradient_by_block={"0": "x"})),
        json.dumps(line(2, gradient_by_block={"zero": 1.0})),
        json.dumps(line(2, gradient_by_part=[1])),
        json.dumps(line(1)),
        json.dumps(line(2) | {"step": -2}),
        json.dumps(line(2) | {"step": True}),
        json.dumps(line(2) | {"step": 2.0}),
        '{"step": ' + "9" * 5000 + "}",
        "[" * 100_000,
    ],
    ids=lambda text: text[:60],
)
def test_what_only_looks_like_a_line_ends_the_log(log, damaged):
    log.append(line(1))
    log.path.write_text(log.path.read_text() + damaged + "\n" + json.dumps(line(3)) + "\n")
    assert log.read() == (line(1),)
    with pytest.raises(MidblockError, match="the line of step 2 cannot be read, the checkpoint is of step 3"):
        log.check(3, 1)


@pytest.mark.parametrize(("steps", "each", "missing"), [((1, 3, 6), 3, None), ((3, 6), 3, 1), ((1, 6), 3, 3)])
def test_a_line_that_is_lost_in_the_middle_is_missed(log, steps, each, missing):
    for step in steps:
        log.append(line(step))
    if missing is None:
        log.check(7, each)
    else:
        with pytest.raises(MidblockError, match=f"the line of step {missing} cannot be read"):
            log.check(7, each)
    log.check(0, each)
