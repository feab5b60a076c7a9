"""Where the answer stands in a conversation, in templates of the styles that families use, token by token."""

import pytest

from midblock.base import MidblockError
from midblock.data import Example, Message, encode, encode_renderable, load_dataset, make_batches
from midblock.data.batches import IGNORED
from midblock.data.templates import render

from .conftest import CHATML, train_byte_level

LOOP = "{% for m in messages %}"
QWEN3 = (  # an empty thought in front of the last answer, thoughts of earlier ones dropped
    LOOP + "<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set said = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% if loop.last %}<think>\n{{ m.content.split('</think>')[0].split('<think>')[-1].strip('\n') "
    "if '</think>' in m.content else '' }}\n</think>\n\n{% endif %}{{ said }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEEPSEEK_R1 = (  # asks with a thought that begins, and writes answers without one
    LOOP + "{% if m.role == 'user' %}[User]{{ m.content }}{% else %}[Assistant]{{ m.content.split('</think>')[-1] }}"
    "[end]{% endif %}{% endfor %}{% if add_generation_prompt %}[Assistant]<think>\n{% endif %}"
)
GEMMA = (  # trims
    "[bos]" + LOOP + "[turn]{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}[/turn]\n"
    "{% endfor %}{% if add_generation_prompt %}[turn]model\n{% endif %}"
)
LLAMA3 = (
    "[bos]" + LOOP + "[h]{{ m.role }}[/h]\n\n{{ m.content | trim }}[eot]{% endfor %}"
    "{% if add_generation_prompt %}[h]assistant[/h]\n\n{% endif %}"
)
MISTRAL = (  # the system prompt stands in the last turn, if that is the user's
    "{% set system = messages[0].content if messages[0].role == 'system' %}[s]" + LOOP + "{% if m.role == 'user' %}"
    "[INST] {% if loop.last and system %}{{ system }}\n\n{% endif %}{{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}[/s]{% endif %}{% endfor %}"
)
SMOLLM3 = (  # marks what is generated
    LOOP + "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}<think>\n\n</think>\n"
    "{{ m.content }}<|im_end|>{% endgeneration %}{{ '\n' }}{% else %}{{ m.content }}<|im_end|>{{ '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
TOOLS = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}" + LOOP + "[{{ m.role }}] {% if m.content %}{{ m.content }}"
    "{% endif %}{% if m.tool_calls %}{% for call in m.tool_calls %}<call>{{ call.function.name }}</call>{% endfor %}"
    "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


def talk(*turns, **more):
    messages = tuple(Message(role, content) for role, content in turns)
    ends = messages[-1].role == "assistant"
    before = messages[:-1] if ends else messages
    return Example("\n".join(m.content for m in before), messages[-1].content if ends else "", messages, **more)


def answer_of(example, template, example_set):
    """The text of the tokens that count as the answer, and of those before and behind."""
    tokenizer = train_byte_level(chat_template=template)
    prompt = encode(example_set(example), tokenizer, template="chat", max_length=1000).prompts[0]
    parts = (prompt.input_ids[: prompt.answer_start], prompt.input_ids[prompt.answer_start : prompt.answer_end])
    before, answer, behind = (
        tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        for ids in (*parts, prompt.input_ids[prompt.answer_end :])
    )
    return before, answer, behind


ONCE = [("user", "How many?"), ("assistant", "48 clips")]
THOUGHT = [("user", "How many?"), ("assistant", "<think>\n24 twice\n</think>\n\n48 clips")]
TWICE = [("user", "Hi"), ("assistant", "<think>\nhm\n</think>\n\nHello"), *ONCE]
ANGLED = [("user", "How many?"), ("assistant", "<thin> 48 clips")]  # begins as the thought that only asking has


@pytest.mark.parametrize(
    ("template", "turns", "expected"),
    [
        (CHATML, ONCE, "48 clips<|im_end|>\n"),
        (QWEN3, ONCE, "<think>\n\n</think>\n\n48 clips<|im_end|>\n"),
        (QWEN3, THOUGHT, "<think>\n24 twice\n</think>\n\n48 clips<|im_end|>\n"),
        (QWEN3, TWICE, "<think>\n\n</think>\n\n48 clips<|im_end|>\n"),
        (DEEPSEEK_R1, ONCE, "48 clips[end]"),
        (DEEPSEEK_R1, ANGLED, "<thin> 48 clips[end]"),
        (DEEPSEEK_R1, [("user", "How many?"), ("assistant", "<think>x</think>48 clips")], "48 clips[end]"),
        (DEEPSEEK_R1, TWICE, "48 clips[end]"),
        (GEMMA, [("user", " How many? "), ("assistant", "  48 clips \n")], "48 clips[/turn]\n"),
        (LLAMA3, [("system", "Be brief."), ("user", "How many? "), ("assistant", "\n48 clips")], "48 clips[eot]"),
        (MISTRAL, ONCE, " 48 clips[/s]"),
        (MISTRAL, [("system", "Be brief."), *ONCE], "48 clips[/s]"),
    ],
)
def test_the_answers_tokens_are_those_of_the_assistant(template, turns, expected, example_set):
    before, answer, behind = answer_of(talk(*turns), template, example_set)
    assert (answer.lstrip(" "), behind) == (expected.lstrip(" "), "")
    text = render([talk(*turns)], train_byte_level(chat_template=template), "chat").texts[0]
    assert before + answer == text
    assert "48 clips" not in before
    assert "How many" not in answer


@pytest.mark.parametrize("turns", [ONCE, TWICE])
def test_generation_blocks_mark_the_answer_to_its_end(turns, example_set):
    before, answer, behind = answer_of(talk(*turns), SMOLLM3, example_set)
    assert (answer, behind) == ("<think>\n\n</think>\n48 clips<|im_end|>", "\n")
    assert before.endswith("<|im_start|>assistant\n")


def test_the_marked_tokens_are_transformers_own(example_set):
    tokenizer = train_byte_level(chat_template=SMOLLM3)
    example = talk(*TWICE)
    prompt = encode(example_set(example), tokenizer, template="chat", max_length=1000).prompts[0]
    theirs = tokenizer.apply_chat_template(
        [m.as_turn() for m in example.messages], return_dict=True, return_assistant_tokens_mask=True
    )
    assert list(prompt.input_ids) == theirs["input_ids"]
    last = [place for place, marked in enumerate(theirs["assistant_masks"]) if marked]
    assert last[-1] + 1 == prompt.answer_end
    assert [place for place in last if place >= prompt.answer_start] == list(
        range(prompt.answer_start, prompt.answer_end)
    )
    assert not theirs["assistant_masks"][prompt.answer_start - 1]


def test_what_stands_behind_a_marked_answer_is_neither_prompt_nor_answer(example_set):
    tokenizer = train_byte_level(chat_template=SMOLLM3)
    examples = example_set(talk(*ONCE), talk(*TWICE))
    prompts = encode(examples, tokenizer, template="chat", max_length=1000).prompts
    (batch,) = make_batches(prompts)
    for row, index in enumerate(batch.index.tolist()):
        prompt, labels = prompts[index], batch.labels()[row].tolist()
        width = len(labels)
        inside = range(prompt.answer_start, prompt.answer_end)
        assert labels == [ids if at in inside else IGNORED for at, ids in enumerate(batch.input_ids[row].tolist())]
        assert batch.region("answer")[row].nonzero().flatten().tolist() == list(inside)
        assert batch.region("prompt")[row].nonzero().flatten().tolist() == list(range(prompt.answer_start))
        assert prompt.answer_end < len(prompt.input_ids) <= width


def test_a_marked_answer_that_is_cut_ends_with_the_sample(example_set):
    tokenizer = train_byte_level(chat_template=SMOLLM3)
    whole = encode(example_set(talk(*ONCE)), tokenizer, template="chat", max_length=1000).prompts[0]
    cut = encode(example_set(talk(*ONCE)), tokenizer, template="chat", max_length=whole.answer_end - 1).prompts[0]
    assert (cut.answer_start, cut.answer_stop, cut.answer_end) == (whole.answer_start, None, whole.answer_end - 1)


def test_templates_that_leave_no_trace_of_the_answer_are_refused(example_set):
    with pytest.raises(MidblockError, match="sample 0: the chat template writes the prompt differently once"):
        answer_of(talk(*ONCE), "{{ messages | length }}{{ add_generation_prompt }}", example_set)


CALL = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
CALLED = {
    "messages": [
        {"role": "user", "content": "What is 1 + 2?"},
        {"role": "assistant", "content": None, "tool_calls": CALL},
        {"role": "tool", "content": "3", "name": "add"},
        {"role": "assistant", "content": "It is 3."},
    ]
}
PLAIN = {"messages": [{"role": "user", "content": "Hi you"}, {"role": "assistant", "content": "Hello there"}]}
PICTURE = [{"type": "text", "text": "See"}, {"type": "image", "url": "x.png"}]


def test_null_contents_beside_tool_calls_are_written_by_the_template(write_jsonl):
    data = load_dataset(write_jsonl([PLAIN, {**CALLED, "tools": [CALL[0]]}]))
    assert data.left_out == {}
    tokenizer = train_byte_level(chat_template=TOOLS)
    ours = render(data.examples, tokenizer, "chat").texts[1]
    theirs = tokenizer.apply_chat_template(CALLED["messages"], tools=[CALL[0]], tokenize=False)
    assert ours == theirs
    assert "[assistant] <call>add</call>\n" in ours


def test_a_template_that_would_print_the_null_gets_an_empty_content(write_jsonl):
    printing = TOOLS.replace("{% if m.content %}{{ m.content }}{% endif %}", "{{ m.content }}")
    text = render(load_dataset(write_jsonl([CALLED])).examples, train_byte_level(chat_template=printing), "chat")
    assert "None" not in text.texts[0]


def test_an_answer_of_tool_calls_alone_is_an_answer(write_jsonl, example_set):
    row = {"messages": CALLED["messages"][:2]}
    _, answer, _ = answer_of(load_dataset(write_jsonl([row])).examples[0], TOOLS, example_set)
    assert answer == "<call>add</call>\n"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("raw", "a sample holds tool calls, which raw text has no way to write"),
        ("chat", "a sample holds tool calls, which the chat template does not write"),
    ],
)
def test_what_a_template_cannot_write_is_left_out_and_counted(template, why, write_jsonl, byte_level):
    data = load_dataset(write_jsonl([PLAIN, CALLED, PLAIN, CALLED]))
    kept, tokens = encode_renderable(data, byte_level, template=template)
    assert len(kept) == len(tokens.prompts) == 2
    assert kept.notes() == [f"2 row(s) of the data left out: {why} (sample 1, sample 3)."]
    assert kept.content_hash == data.content_hash
    with pytest.raises(MidblockError, match="sample 0 holds tool calls"):
        encode_renderable(load_dataset(write_jsonl([CALLED])), byte_level, template=template)


def test_roles_that_a_template_refuses_are_left_out(write_jsonl):
    strict = "{% for m in messages %}{% if m.role == 'developer' %}{{ raise_exception('no developer') }}{% endif %}"
    tokenizer = train_byte_level(chat_template=strict + CHATML.removeprefix("{% for message in messages %}").replace(
        "message", "m"))  # fmt: skip
    asked = {"messages": [{"role": "developer", "content": "Be brief."}, *PLAIN["messages"]]}
    kept, _ = encode_renderable(load_dataset(write_jsonl([PLAIN, asked, PLAIN])), tokenizer, template="chat")
    (note,) = kept.notes()
    assert "fails on a sample (turns: developer, user, assistant): no developer (sample 1)" in note


def test_parts_of_text_are_joined_and_others_left_out(write_jsonl):
    said = [{"type": "text", "text": "Hi "}, {"type": "text", "text": "you"}]
    rows = [{"messages": [{"role": "user", "content": each}, PLAIN["messages"][1]]} for each in (said, PICTURE)]
    bad = [{"messages": [{"role": "user"}, PLAIN["messages"][1]]}]
    data = load_dataset(write_jsonl([PLAIN, PLAIN, rows[0], rows[1], *bad, PLAIN]))
    assert [example.prompt for example in data] == ["Hi you"] * 4
    assert data.notes() == [
        "1 row(s) of the data left out: column 'messages', a message: its content holds a part of the type 'image', "
        "which is no text (row 4).",
        "1 row(s) of the data left out: column 'messages', a message: column 'content' is null or missing (row 5).",
    ]


def test_rows_that_cannot_be_read_are_replaced_by_the_next_ones(write_jsonl):
    path = write_jsonl([{"text": f"row {i}" if i % 5 else None} for i in range(40)])
    data = load_dataset(path, num_samples=20)
    assert len(data) == 20
    assert all(example.text.startswith("row") for example in data)
    rest = load_dataset(path, num_samples=12, skip=20)
    assert not {example.text for example in data} & {example.text for example in rest}
    with pytest.raises(MidblockError, match=r"holds 32 samples, and 8 rows that cannot be read; 33 samples"):
        load_dataset(path, num_samples=33)


def test_rows_of_which_half_cannot_be_read_are_a_mistake(write_jsonl):
    with pytest.raises(MidblockError, match=r"row 1: column 'text' is null or missing; 2 of 4 rows cannot be read"):
        load_dataset(write_jsonl([{"text": None}, {"text": "a"}] * 2))


def test_plain_conversations_hash_as_they_did(write_jsonl):
    """The hash is what a run is resumed by."""
    import hashlib
    import json

    turns = [["user", "Hi you"], ["assistant", "Hello there"]]
    line = json.dumps(["Hi you", "\n", "Hello there", turns, []]).encode("ascii") + b"\n"
    assert load_dataset(write_jsonl([PLAIN])).content_hash == hashlib.sha256(line).hexdigest()
