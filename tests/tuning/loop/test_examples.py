"""Examples to train on: which tokens are targets, what was cut, and what is refused before training."""

import json

import pytest
import torch
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from midblock.base import MidblockError
from midblock.data import Example, ExampleSet, Message
from midblock.data.batches import IGNORED
from midblock.tuning.loop.examples import Collator, load_examples, runs_here
from midblock.tuning.loop.tune_settings import TuneSettings

CHAT = (
    "{% for message in messages %}<bos>{{ message['role'] }}\n{{ message['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
)


def answered(prompt, completion, separator="\n"):
    return Example(prompt, completion, (Message("user", prompt), Message("assistant", completion)), separator)


def load(tokenizer, *examples, **options):
    return load_examples(ExampleSet("made here", "", "made here", examples, "hash"), tokenizer, TuneSettings(**options))


def targets(tokenizer, examples, row=0):
    """The text of the tokens that are trained on."""
    labels = examples.dataset()[row]["labels"]
    return tokenizer.decode([label for label in labels if label != IGNORED])


@pytest.fixture(scope="module")
def chatty(tokenizer):
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        chat_template=CHAT,
    )


def test_only_the_completion_is_trained_on_and_its_end(tokenizer):
    examples = load(tokenizer, answered("How many?", "She has 7."))
    assert targets(tokenizer, examples) == "She has 7.<eos>"
    assert tokenizer.decode(examples.dataset()[0]["input_ids"]) == "How many?\nShe has 7.<eos>"
    assert (len(examples), examples.on_prompt, examples.notes) == (1, False, [])


def test_the_prompt_too_when_asked_but_for_its_first_token(tokenizer):
    """Nothing predicts the first token; a label there would be counted and never learned."""
    examples = load(tokenizer, answered("How many?", "She has 7."), train_on_prompt=True)
    row = examples.dataset()[0]
    assert row["labels"] == [IGNORED, *row["input_ids"][1:]]
    assert targets(tokenizer, examples).endswith("any?\nShe has 7.<eos>")
    assert examples.facts["target_tokens"] == len(row["input_ids"]) - 1


def test_a_completion_that_begins_in_the_first_token_loses_it_alone(tokenizer):
    examples = load(tokenizer, answered("H", "ow many apples", separator=""))
    assert examples.prompts[0].answer_start == 0
    row = examples.dataset()[0]
    assert row["labels"] == [IGNORED, *row["input_ids"][1:]]
    assert examples.facts["target_tokens"] == len(row["input_ids"]) - 1


def test_target_tokens_are_what_the_labels_say(tokenizer):
    data = [answered("How many?", "7"), answered("3 + 4 =", "7 apples in the end"), answered("a", "b")]
    for options in ({}, {"train_on_prompt": True}):
        examples = load(tokenizer, *data, **options)
        labels = torch.cat([torch.tensor(row["labels"])[1:] for row in examples.dataset()])
        assert examples.facts["target_tokens"] == (labels != IGNORED).sum()
        assert examples.facts["tokens"] == sum(examples.lengths)
        assert examples.facts["longest"] == max(examples.lengths)


def test_the_end_is_appended_once(tokenizer):
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    ending = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", tokenizer.eos_token_id)]
    )
    example = answered("How many?", "7")
    plain, once = load(tokenizer, example), load(ending, example)
    assert once.prompts[0].input_ids == plain.prompts[0].input_ids
    assert once.prompts[0].input_ids.count(tokenizer.eos_token_id) == 1
    assert once.dataset()[0]["labels"][-1] == tokenizer.eos_token_id


def test_cuts_are_counted_and_said(tokenizer):
    short, long = answered("a", "b"), answered("a", "b" * 30)
    examples = load(tokenizer, short, long, long, max_length=8)
    assert examples.facts["truncated"] == 2
    assert examples.notes == [
        "2 of 3 examples are longer than 8 tokens and were cut; their end of text is not learned."
    ]
    assert examples.lengths == [4, 8, 8]
    assert targets(tokenizer, examples, 0) == "b<eos>"
    assert "<eos>" not in targets(tokenizer, examples, 1)


def test_losing_the_end_of_text_alone_is_a_cut(tokenizer):
    whole = load(tokenizer, answered("a", "bcd"))
    examples = load(tokenizer, answered("a", "bcd"), max_length=whole.lengths[0] - 1)
    assert examples.facts["truncated"] == 1
    assert targets(tokenizer, examples) == "bcd"
    assert load(tokenizer, answered("a", "bcd"), max_length=whole.lengths[0]).facts["truncated"] == 0


def test_rows_that_lose_their_whole_completion_are_named(tokenizer):
    fine, lost = answered("a", "b"), answered("x" * 20, "y")
    with pytest.raises(MidblockError) as caught:
        load(tokenizer, fine, lost, fine, lost, max_length=10)
    assert str(caught.value) == (
        "2 examples of 4 lose their whole completion at 10 tokens: rows 1, 3 "
        "(raise --max-length, or take those rows out)"
    )
    with pytest.raises(MidblockError, match=r"^1 example of 2 lose.* at 10 tokens: row 1 "):
        load(tokenizer, fine, lost, max_length=10)
    with pytest.raises(MidblockError, match=r"7 examples of 7 .*: rows 0, 1, 2, 3, 4, … "):
        load(tokenizer, *[lost] * 7, max_length=10)


def test_trained_on_the_prompt_they_are_cut_like_others(tokenizer):
    examples = load(tokenizer, answered("x" * 20, "y"), max_length=10, train_on_prompt=True)
    assert examples.facts["truncated"] == 1
    assert examples.facts["target_tokens"] == 9


@pytest.mark.parametrize("options", [{}, {"max_length": 4}])
def test_without_a_completion_the_way_out_is_named(tokenizer, options):
    with pytest.raises(MidblockError) as caught:
        load(tokenizer, answered("a", "b"), Example("plain text here"), **options)
    assert str(caught.value) == (
        "1 example of 2 in made here have no completion: row 1 (--train-on-prompt trains on all of the text)"
    )
    examples = load(tokenizer, answered("a", "b"), Example("plain text here"), train_on_prompt=True)
    assert targets(tokenizer, examples, 1).endswith("text here<eos>")


def test_what_is_too_short_is_left_out_and_said(chatty, tmp_path):
    template = tmp_path / "bare.jinja"
    template.write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    empty = Example("a", messages=(Message("user", "a"),))
    examples = load(chatty, empty, answered("a", "b"), template=str(template), train_on_prompt=True)
    assert examples.facts["too_short"] == [0]
    assert examples.notes == ["1 example left out, too short to learn from: row 0."]
    assert [prompt.index for prompt in examples.prompts] == [1]
    assert examples.dataset()["index"][:] == [0]


def test_a_chat_template_writes_its_own_end(chatty):
    examples = load(chatty, answered("How many?", "She has 7."), template="chat")
    text = chatty.decode(examples.dataset()[0]["input_ids"])
    assert text == "<bos>user\nHow many?<eos>\n<bos>assistant\nShe has 7.<eos>\n"
    assert targets(chatty, examples) == "She has 7.<eos>\n"
    assert examples.facts["template"] == CHAT


def test_of_a_conversation_the_last_turn_is_trained_on(chatty):
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
    examples = load(chatty, Example("a\nb\nc", "d", turns), template="chat")
    assert targets(chatty, examples) == "d<eos>\n"


def test_a_conversation_without_an_answer_is_refused(chatty):
    with pytest.raises(MidblockError, match=r"have no completion: row 0 \(--train-on-prompt"):
        load(chatty, Example("a", messages=(Message("user", "a"),)), template="chat")


def test_facts_of_a_file(tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{n} + 1 =", "completion": str(n + 1)}) + "\n" for n in range(9)))
    settings = TuneSettings(num_samples=4, seed=3)
    examples = load_examples(str(path), tokenizer, settings)
    assert examples.facts["num_samples"] == len(examples) == 4
    assert examples.facts["reference"] == str(path)
    assert examples.facts["template"] == "raw"
    again = load_examples(str(path), tokenizer, settings)
    assert again.prompts == examples.prompts
    assert again.facts == examples.facts
    other = load_examples(str(path), tokenizer, TuneSettings(num_samples=4, seed=4))
    assert other.facts["content_hash"] != examples.facts["content_hash"]


def test_builtin_sets_are_trained_on_their_train_split(tokenizer):
    def content(split):
        settings = TuneSettings(num_samples=3, split=split, max_length=2000)
        return load_examples("builtin:chain_sum", tokenizer, settings).facts

    assert content(None)["split"] == "train"
    assert content(None) == content("train")
    assert content("test")["content_hash"] != content("train")["content_hash"]


def test_the_collator_pads_on_the_right(tokenizer):
    examples = load(tokenizer, answered("a", "b"), answered("3 + 4 =", "7 apples"), answered("How many?", "7"))
    rows = [examples.dataset()[row] for row in (2, 0, 1)]
    batch = Collator(99)(rows)
    width = max(examples.lengths)
    assert batch["index"].tolist() == [2, 0, 1]
    assert {name: tuple(value.shape) for name, value in batch.items() if name != "index"} == dict.fromkeys(
        ("input_ids", "attention_mask", "labels"), (3, width)
    )
    for position, row in enumerate(rows):
        length = len(row["input_ids"])
        assert batch["input_ids"][position].tolist() == row["input_ids"] + [99] * (width - length)
        assert batch["labels"][position].tolist() == row["labels"] + [IGNORED] * (width - length)
        assert batch["attention_mask"][position].tolist() == [1] * length + [0] * (width - length)
    assert {value.dtype for value in batch.values()} == {torch.int64}


def with_template(tokenizer, template):
    tokens = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, chat_template=template, **tokens)


def test_what_a_template_marks_as_generated_is_trained_on_to_its_end_and_no_further(tokenizer):
    marked = CHAT.replace(
        "{{ message['content'] }}<eos>\n",
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<eos>{% endgeneration %}"
        "{% else %}{{ message['content'] }}<eos>{% endif %}{{ '\n' }}",
    )
    examples = load(with_template(tokenizer, marked), answered("How many?", "She has 7."), template="chat")
    assert targets(tokenizer, examples) == "She has 7.<eos>"
    assert tokenizer.decode(examples.dataset()[0]["input_ids"]).endswith("She has 7.<eos>\n")
    assert examples.facts["target_tokens"] == sum(label != IGNORED for label in examples.dataset()[0]["labels"])


def test_a_thought_that_only_asking_has_is_no_part_of_the_answer(tokenizer):
    asking = CHAT.replace("<bos>assistant\n{% endif %}", "<bos>assistant\n<think>\n{% endif %}")
    examples = load(with_template(tokenizer, asking), answered("How many?", "<th>She has 7."), template="chat")
    assert targets(tokenizer, examples) == "<th>She has 7.<eos>\n"


def test_rows_that_the_template_cannot_write_are_left_out_and_said(tokenizer, chatty):
    called = Message("assistant", "", {"tool_calls": [{"function": {"name": "add"}}]})
    rows = [answered("How many?", "She has 7."), Example("How many?", "", (Message("user", "How many?"), called))]
    for template in ("raw", "chat"):
        examples = load(chatty, *rows, *rows[:1], template=template)
        assert len(examples) == 2
        (note,) = examples.notes
        assert note.startswith("1 row(s) of the data left out: a sample holds tool calls, which ")


def test_flash_attention_waits_for_its_device(pico):
    model = pico("llama")
    assert runs_here(model)
    model.config._attn_implementation = "flash_attention_2"
    assert not runs_here(model)
