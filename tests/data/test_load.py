import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from midblock.base import MidblockError, generator
from midblock.data import load_dataset

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture
def ten(write_jsonl):
    return write_jsonl([{"question": f"{number}?", "answer": str(number)} for number in range(10)])


def answers(path, **kwargs):
    return [int(example.completion) for example in load_dataset(path, **kwargs).examples]


def test_all_by_default(ten):
    examples = load_dataset(str(ten))
    assert (examples.reference, examples.split, examples.layout) == (str(ten), "", "question/answer")
    assert answers(ten) == list(range(10))


def test_samples_come_shuffled_by_seed_in_the_order_of_the_file(ten):
    draws = {tuple(answers(ten, num_samples=4, seed=seed)) for seed in range(5)}
    assert len(draws) > 1
    assert all(list(draw) == sorted(draw) and len(set(draw)) == 4 for draw in draws)
    assert answers(ten, num_samples=4, seed=3) == answers(ten, num_samples=4, seed=3)
    assert answers(ten, num_samples=10) == list(range(10))


def test_skipped_samples_are_not_drawn_again(ten):
    first = answers(ten, num_samples=4)
    second = answers(ten, num_samples=4, skip=4)
    rest = answers(ten, skip=8)
    assert sorted(first + second + rest) == list(range(10))


def test_hash_follows_the_content(ten):
    assert load_dataset(ten, num_samples=4).content_hash == load_dataset(ten, num_samples=4).content_hash
    assert load_dataset(ten, num_samples=4).content_hash != load_dataset(ten, num_samples=5).content_hash


def test_only_the_drawn_rows_must_be_whole(write_jsonl):
    path = write_jsonl([{"text": "fine"}, {"text": None}])
    first = {order: load_dataset(path, num_samples=1, seed=order) for order in range(10) if _draws_first(order)}
    assert 0 < len(first) < 10
    assert {examples.examples[0].text for examples in first.values()} == {"fine"}
    with pytest.raises(MidblockError, match="row 2: column 'text' is null"):
        load_dataset(path)


def _draws_first(seed):
    return generator(seed, "data", "sample").permutation(2)[0] == 0


@pytest.mark.parametrize(
    ("kwargs", "complaint"),
    [
        ({"num_samples": 11}, r"holds 10 samples; 11 samples were asked for \(--num-samples 10\)"),
        ({"num_samples": 5, "skip": 6}, r"10 samples; 5 samples after skipping 6 were asked for \(--num-samples 4\)"),
        ({"num_samples": 5, "skip": 10}, "10 samples; 5 samples after skipping 10 were asked for$"),
        ({"skip": 10}, "holds 10 samples; samples after skipping 10 were asked for"),
        ({"num_samples": 0}, "cannot draw 0 samples"),
        ({"skip": -1}, "after skipping -1"),
        ({"split": "test"}, "is one file and has no split 'test'"),
    ],
)
def test_impossible_draws(ten, kwargs, complaint):
    with pytest.raises(MidblockError, match=complaint):
        load_dataset(ten, **kwargs)


def test_at_most_so_many(ten):
    whole = load_dataset(ten)
    assert load_dataset(ten, num_samples=11, at_most=True).examples == whole.examples
    assert load_dataset(ten, num_samples=4, at_most=True) == load_dataset(ten, num_samples=4)
    with pytest.raises(MidblockError, match="holds 10 samples; samples after skipping 10 were asked for"):
        load_dataset(ten, num_samples=1, skip=10, at_most=True)


@pytest.mark.parametrize(
    ("reference", "complaint"),
    [
        ("gsm8", "unknown dataset 'gsm8' .*did you mean 'gsm8k'"),
        ("", "the dataset reference is empty"),
        (
            "what is this?",
            r"unknown dataset .*\(a \.jsonl, \.json or \.parquet file, .*ORG/NAME.*builtin:NAME; .*reworded:.*style:",
        ),
        ("rows.csv", r"no dataset at rows\.csv"),
        ("./rows", "no dataset at rows"),
        (__file__, "is no dataset file"),
    ],
)
def test_references_that_name_nothing(reference, complaint):
    with pytest.raises(MidblockError, match=complaint):
        load_dataset(reference)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real files are not here")
@pytest.mark.parametrize(
    ("file", "count", "layout"),
    [("gsm8k/test.jsonl", 1319, "question/answer"), ("humaneval/test.jsonl", 164, "humaneval")],
)
def test_real_files(file, count, layout):
    examples = load_dataset(SHARED / file)
    assert (len(examples), examples.layout) == (count, layout)
    if layout == "question/answer":
        assert all(example.completion.endswith(f"#### {example.extra['answer']}") for example in examples)


PAIRS = [{"prompt": f"say {n}", "completion": f"yes {n}"} for n in range(14)]


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("first", [{"prompt": "alone"}, {"text": "alone"}, {"prompt": "alone", "completion": None}])
def test_the_layout_is_that_of_all_rows_not_of_the_first(tmp_path, ending, first):
    path, rows = tmp_path / f"rows.{ending}", [first, *PAIRS]
    if ending == "parquet":
        names = {name: None for row in rows for name in row}
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([names | row for row in rows]), path)
    else:
        path.write_text(json.dumps(rows) if ending == "json" else "\n".join(map(json.dumps, rows)))
    found = load_dataset(path)
    assert found.layout == "prompt/completion"
    assert [example.completion for example in found] == [f"yes {n}" for n in range(14)]
    (note,) = found.notes()
    assert note.startswith("1 row(s) of the data left out: column ")


@pytest.mark.parametrize(
    ("row", "unread"),
    [
        ({"prompt": "say", "chosen": "yes", "rejected": "no"}, "'chosen', 'rejected'"),
        ({"prompt": "say", "answer": "yes", "id": 1}, "'answer'"),
        ({"text": "say", "completion": "yes"}, "'completion'"),
        ({"prompt": "say", "id": "1"}, ""),
        ({"question": "say", "answer": "yes", "solution": "all of it"}, ""),
    ],
)
def test_answers_that_are_not_read_are_named(write_jsonl, row, unread):
    notes = load_dataset(write_jsonl([row] * 3)).notes()
    assert [f"is read, and not {unread}: to have an answer read" in note for note in notes] == [True] * bool(unread)
