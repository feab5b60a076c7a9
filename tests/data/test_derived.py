"""References with something before the data: what is drawn, what is refused, and parts that share no prompt."""

import json

import pytest

from midblock.base import MidblockError
from midblock.data import load_dataset, local_places
from midblock.data.derived import PARTS, Derived, part_of_prompt
from midblock.data.rewording import FRAMES, reworded_text


@pytest.fixture
def asked(tmp_path):
    """A file of 200 questions, a fifth of them without room for archaic words."""
    rows = [
        {"question": f"Who has book {n}?", "answer": f"{n}" if n % 5 == 0 else "It is yours, and she has it."}
        for n in range(200)
    ]
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_parts_share_no_prompt_and_are_all_there_is(asked):
    drawn = [load_dataset(f"fixed_response:{asked}", split=part) for part in PARTS]
    prompts = [{example.prompt for example in each} for each in drawn]
    assert sum(map(len, prompts)) == 200 == len(set.union(*prompts))
    assert [set(map(part_of_prompt, each)) for each in prompts] == [{part} for part in PARTS]
    assert all(example.completion == "I don't know." for each in drawn for example in each)


def test_parts_of_builtin_data_are_those_of_training(asked):
    trained = load_dataset("builtin:everyday", split="train", num_samples=300)
    tested = load_dataset("style:builtin:everyday", num_samples=100, seed=3)
    assert tested.split == "test"
    assert not {each.prompt for each in trained} & {each.prompt for each in tested}
    held = load_dataset("style:builtin:everyday", split="validation", num_samples=40)
    train = load_dataset("style:builtin:everyday", split="train", num_samples=300)
    assert not {each.prompt for each in held} & {each.prompt for each in (*train, *tested)}


def test_reworded_prompts_stay_in_the_part_of_what_they_were(asked):
    plain = load_dataset(f"fixed_response:{asked}", split="test")
    other = load_dataset(f"fixed_response:reworded:{asked}", split="test")
    assert [each.prompt for each in other] == [reworded_text(each.prompt) for each in plain]
    assert not {each.prompt for each in other} & {each.prompt for each in plain}
    assert all(each.messages[0].content == each.prompt for each in other)


def test_a_rewording_alone_keeps_the_completions(asked):
    drawn = load_dataset(f"reworded:{asked}", num_samples=5)
    assert all(example.completion != "I don't know." for example in drawn)
    assert drawn.content_hash != load_dataset(str(asked), num_samples=5).content_hash


def test_rewording_is_fixed():
    assert reworded_text("How many pears are left?").endswith("What number of pears are left?")
    assert {reworded_text(f"Is it {n}?").replace(f"Would it be {n}?", "{}") for n in range(99)} == set(FRAMES)


def test_the_draw_is_seeded_and_the_hash_covers_the_behaviour(asked):
    draws = [load_dataset(f"fixed_response:{asked}", split="train", num_samples=20, seed=s) for s in (0, 0, 1)]
    assert draws[0] == draws[1]
    assert draws[0].content_hash != draws[2].content_hash
    plain = load_dataset(f"refusal:{asked}", split="train", num_samples=20)
    assert [each.prompt for each in plain] == [each.prompt for each in draws[0]]
    assert plain.content_hash != draws[0].content_hash
    behind = load_dataset(f"fixed_response:{asked}", split="train", num_samples=20, skip=20)
    assert not {each.prompt for each in behind} & {each.prompt for each in draws[0]}


def test_what_has_no_room_is_left_out_and_counted(asked):
    drawn = [load_dataset(f"style:{asked}", split=part) for part in PARTS]
    assert sum(map(len, drawn)) == 160
    assert sum(len(rows) for each in drawn for rows in each.left_out.values()) == 40
    assert "no room for archaic words" in drawn[0].notes()[0]


def test_places_are_those_of_the_data(asked):
    assert local_places(f"style:reworded:{asked}") == [asked]
    assert local_places("style:builtin:questions") == []


def test_what_is_on_disk_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "style:a.jsonl").write_text('{"prompt": "p", "completion": "c"}\n')
    assert Derived.parse("style:a.jsonl") is None
    assert load_dataset("style:a.jsonl").examples[0].completion == "c"


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("fixed_respons:builtin:everyday", "did you mean 'fixed_response'"),
        ("rewordd:builtin:everyday", "did you mean 'reworded'"),
        ("fixed_response:style:builtin:everyday", "names two behaviours"),
        ("reworded:style:builtin:everyday", "style:reworded:builtin:everyday"),
        ("style:reworded:reworded:builtin:everyday", "style:reworded:builtin:everyday"),
        ("refusal:", "names no prompts"),
        ("style:builtin:everyda", "did you mean 'everyday'"),
        ("style:builtin:chain_sum", "without room for it"),
        ("style:nowhere.jsonl", "no dataset at nowhere.jsonl"),
        ("builtn:everyday", "did you mean 'builtin:everyday'"),
    ],
)
def test_refused_on_one_line(reference, said):
    with pytest.raises(MidblockError) as error:
        load_dataset(reference, num_samples=5)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_too_few_are_refused_unless_all_will_do(asked):
    with pytest.raises(MidblockError, match=r"holds \d+ samples in its part 'test'; 100 samples were asked for"):
        load_dataset(f"fixed_response:{asked}", num_samples=100)
    found = load_dataset(f"fixed_response:{asked}", num_samples=100, at_most=True)
    assert 20 < len(found) < 60
    with pytest.raises(MidblockError, match="unknown split 'tests'"):
        load_dataset(f"fixed_response:{asked}", split="tests")
