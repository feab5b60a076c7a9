import json

import pytest

from midblock.base import MidblockError
from midblock.data import LAYOUTS, Example, Message
from midblock.data.layouts import detect_layout, read_examples
from midblock.data.records import Records

TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
ANSWER = {"role": "assistant", "content": "Hello"}

ROWS = {
    "messages": {"messages": [*TURNS, ANSWER]},
    "conversations": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    "prompt/completion": {"prompt": "Hi", "completion": "Hello"},
    "prompt/response": {"response": "Hello", "prompt": "Hi", "source": "x"},
    "query/response": {"query": "Hi", "response": "Hello"},
    "question/answer": {"question": "Hi", "answer": "Hello"},
    "instruction/input/output": {"instruction": "Hi", "input": "", "output": "Hello", "text": "all of it"},
    "text": {"text": "Hi"},
    "prompt": {"prompt": "Hi", "key": 1000},
    "mmlu": {"question": "Hi", "choices": ["Hello", "Bye"], "answer": 0, "subject": "manners"},
    "humaneval": {"prompt": "def f():\n", "canonical_solution": "    return 1\n", "test": "assert f() == 1", "n": 1},
}


def read(row, layout=None):
    rows = Records.from_records("rows", [row])
    return read_examples(rows, layout or detect_layout(rows), [0])[0]


@pytest.mark.parametrize("layout", ROWS)
def test_each_layout_is_recognised(layout):
    assert detect_layout(Records.from_records("rows", [ROWS[layout]])) == layout


def test_every_layout_has_a_case():
    assert set(ROWS) | {"wikitext"} == set(LAYOUTS)


@pytest.mark.parametrize("layout", ["prompt/response", "instruction/input/output"])
def test_a_prompt_and_its_completion(layout):
    messages = (Message("user", "Hi"), Message("assistant", "Hello"))
    assert read(ROWS[layout]) == Example("Hi", "Hello", messages)


def test_prompt_and_completion_are_joined_as_trl_joins_them():
    messages = (Message("user", "Hi"), Message("assistant", "Hello"))
    assert read(ROWS["prompt/completion"]) == Example("Hi", "Hello", messages, separator="")


def test_messages_keep_all_turns_and_the_last_answer_completes():
    example = read(ROWS["messages"])
    assert (example.prompt, example.completion) == ("Be brief.\nHi", "Hello")
    assert [message.role for message in example.messages] == ["system", "user", "assistant"]


def test_messages_that_end_with_the_user_have_no_completion():
    example = read({"messages": TURNS})
    assert (example.text, example.completion) == ("Be brief.\nHi", "")


def test_sharegpt_roles_are_translated():
    assert read(ROWS["conversations"]).messages == (Message("user", "Hi"), Message("assistant", "Hello"))


def test_conversational_prompt_and_completion():
    as_messages = read(ROWS["messages"])
    assert read({"prompt": TURNS, "completion": [ANSWER]}) == as_messages


def test_gsm8k_answer_is_scored_behind_the_marks():
    answer = "He has 48/2=<<48/2=24>>24.\n#### 24"
    example = read({"question": "How many?", "answer": answer})
    assert example.completion == answer
    assert example.extra == {"answer": "24"}


def test_instruction_with_input():
    example = read({"instruction": "Translate", "input": "Hund", "output": "dog"})
    assert example.prompt == "Translate\nHund"


def test_instruction_without_an_input_column():
    assert read({"instruction": "Say dog", "output": "dog"}).prompt == "Say dog"


def test_plain_text_has_no_turns():
    assert read(ROWS["text"]) == Example("Hi")


def test_multiple_choice_is_lettered():
    example = read(ROWS["mmlu"])
    assert example.text == "Hi\nA. Hello\nB. Bye\nAnswer: A"
    assert example.extra["answer"] == "A"
    assert json.loads(example.extra["choices"]) == ["Hello", "Bye"]


def test_code_continues_its_prompt():
    example = read(ROWS["humaneval"])
    assert example.text == "def f():\n    return 1\n"
    assert example.extra == {"test": "assert f() == 1"}


def test_the_first_of_several_prompts_is_asked():
    assert read({"prompt": ["Write.", "Now rewrite."]}).prompt == "Write."


def test_a_prompt_of_messages():
    assert read({"prompt": TURNS}).text == "Be brief.\nHi"


def test_unknown_columns_are_named_with_the_nearest():
    with pytest.raises(MidblockError) as caught:
        detect_layout(Records.from_records("pairs.jsonl", [{"questions": "a", "answers": "b"}]))
    message = str(caught.value)
    assert "pairs.jsonl" in message
    assert "'questions', 'answers'" in message
    assert "rename 'questions' to 'question'?" in message
    assert "prompt, completion" in message


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"question": "a", "answer": None}, "column 'answer' is null or missing"),
        ({"question": "a", "answer": 7}, "column 'answer' is int, not text"),
        ({"question": " \n", "answer": "b"}, "column 'question' is empty"),
        ({"text": ""}, "column 'text' is empty"),
        ({"text": "\ud83e"}, "column 'text' is no valid Unicode"),
        ({"prompt": "a", "completion": ""}, "column 'completion' is empty"),
        ({"prompt": 1}, "column 'prompt' is int"),
        ({"prompt": [], "completion": "b"}, "column 'prompt' holds no list of messages"),
        ({"instruction": "a", "input": 3, "output": "b"}, "column 'input' is int"),
        ({"messages": "hi"}, "column 'messages' holds no list of messages"),
        ({"messages": []}, "column 'messages' holds no list of messages"),
        ({"messages": ["hi"]}, "message 1 has no role and content"),
        ({"messages": [*TURNS, {"role": "assistant", "content": None}]}, "message 3: column 'content' is null"),
        ({"messages": [{"text": "hi"}]}, "message 1: column 'from' is null"),
        ({"question": "a", "choices": "b", "answer": 0}, "column 'choices' is no list of texts"),
        ({"question": "a", "choices": ["b"], "answer": 1}, "column 'answer' is 1, not the position of one of 1"),
        ({"question": "a", "choices": ["b"], "answer": True}, "column 'answer' is True"),
    ],
)
def test_a_bad_cell_is_named_with_its_row(row, complaint):
    good = next(r for r in [*ROWS.values()] if set(row) <= set(r) or set(r) <= set(row))
    rows = Records.from_records("rows.jsonl", [good, row])
    layout = detect_layout(Records.from_records("rows.jsonl", [row]))
    with pytest.raises(MidblockError, match=r"^rows\.jsonl, row 2: ") as caught:
        read_examples(rows, layout, [1])
    assert complaint in str(caught.value)


@pytest.mark.parametrize("layout", ROWS)
def test_the_columns_a_layout_reads_are_all_it_needs(layout):
    row = {**ROWS[layout], "tools": [{"name": "look"}]}
    asked = {}

    def take(at, columns):
        asked.update(row)
        return [{name: value for name, value in row.items() if name in columns} for _ in at]

    only = read_examples(Records("rows", "", tuple(row), 1, take), layout, [0])
    assert asked
    assert only == (read(row, layout),)


def test_a_row_that_no_walk_gets_to_the_end_of():
    deep = {"type": "function"}
    for _ in range(5000):
        deep = {"parameters": deep}
    row = {"messages": [TURNS[1], ANSWER], "tools": [deep]}
    with pytest.raises(MidblockError, match="rows, row 1 is nested too deeply"):
        read(row)


def test_a_wide_table_of_nothing_known_is_told_in_short():
    row = {f"column {n} {'x' * 500}": "a" for n in range(1000)}
    with pytest.raises(MidblockError, match="no known column layout") as raised:
        detect_layout(Records.from_records("rows", [row]))
    assert len(str(raised.value)) < 3000


def test_a_column_may_say_what_a_row_is_a_variant_of():
    given = [("1+1?", "2", 7), ("1+2?", "3", 7), ("Who?", "me", None)]
    rows = [dict(zip(("question", "answer", "question_id"), row, strict=True)) for row in given]
    records = Records.from_records("memory", rows)
    found = read_examples(records, detect_layout(records), range(3))
    assert [example.question for example in found] == ["7", "7", ""]
    alone = Records.from_records("memory", [{"question": "1+1?", "answer": "2", "original_id": "a"}])
    assert read_examples(alone, detect_layout(alone), [0])[0].question == "a"
