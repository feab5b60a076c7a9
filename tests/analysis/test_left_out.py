"""Rows that cannot be given to the models: left out of every verb's samples, counted, and said."""

import json

import pytest

from midblock.analysis import analyze
from midblock.checkpoints import Pair
from midblock.interventions import probe
from midblock.runs.record import read_record

CALL = [{"type": "function", "function": {"name": "add", "arguments": "{}"}}]


@pytest.fixture
def path(tmp_path):
    turns = [
        [{"role": "user", "content": f"what is {i} and {i}"}, {"role": "assistant", "content": f"it is {2 * i}"}]
        for i in range(12)
    ]
    turns[3][1] = {"role": "assistant", "content": None, "tool_calls": CALL}
    turns[7][0]["content"] = [{"type": "image", "url": "x.png"}]
    file = tmp_path / "talk.jsonl"
    file.write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
    return str(file)


@pytest.mark.parametrize("verb", [analyze, probe])
def test_rows_left_out_are_counted_in_the_notes(verb, path, tmp_path, pico, tuned_from, tokenizer):
    base = pico("llama")
    pair = Pair.of_models(base, {"sft": tuned_from(base)}, tokenizer)
    verb(pair, path, num_samples=11, output_dir=str(tmp_path / "run"))
    record = read_record(tmp_path / "run")
    assert record["data"]["num_samples"] == 10
    assert record["notes"][:2] == [
        "1 row(s) of the data left out: column 'messages', a message: its content holds a part of the type 'image', "
        "which is no text (row 8).",
        "1 row(s) of the data left out: a sample holds tool calls, which raw text has no way to write (sample 3).",
    ]
