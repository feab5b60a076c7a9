import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizer

from midblock.base import MidblockError
from midblock.data import Example, Message, encode

from .conftest import train_byte_level

PROMPT, COMPLETION = "How many clips did Natalia sell?", "48/2 = 24, so 72.\n#### 72"


def test_raw_ids_are_the_tokenizers_own(byte_level, sentencepiece_like, example_set, answered):
    for tokenizer in (byte_level, sentencepiece_like):
        encoded = encode(example_set(answered(PROMPT, COMPLETION)), tokenizer)
        assert list(encoded.prompts[0].input_ids) == tokenizer(f"{PROMPT}\n{COMPLETION}")["input_ids"]
        assert encoded.template == "raw"


def test_the_boundary_divides_prompt_and_completion(byte_level, example_set, answered):
    prompt = encode(example_set(answered(PROMPT, COMPLETION)), byte_level).prompts[0]
    assert byte_level.decode(prompt.input_ids[: prompt.answer_start]) == PROMPT + "\n"
    assert byte_level.decode(prompt.input_ids[prompt.answer_start :]) == COMPLETION


def test_a_bos_in_front_is_no_answer(sentencepiece_like, example_set, answered):
    prompt = encode(example_set(answered("Hi", "so 72")), sentencepiece_like).prompts[0]
    tokens = sentencepiece_like.convert_ids_to_tokens(list(prompt.input_ids))
    assert tokens[0] == "<s>"
    assert "".join(tokens[prompt.answer_start :]).replace("▁", " ") == "so 72"


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20), st.sampled_from(["", "\n", " "]))
def test_the_boundary_is_exact_in_any_text(byte_level, example_set, prompt, completion, separator):
    """The tokens before hold no byte of the completion; one more token, and they do."""
    examples = example_set(Example(prompt, completion, separator=separator))
    tokens = encode(examples, byte_level, max_length=10_000, min_tokens=1).prompts[0]
    boundary = len((prompt + separator).encode())
    sizes = [len(token) for token in byte_level.convert_ids_to_tokens(list(tokens.input_ids))]
    assert sum(sizes[: tokens.answer_start]) <= boundary
    assert sum(sizes[: tokens.answer_start + 1]) > boundary


def test_chat_writes_its_own_special_tokens(byte_level, sentencepiece_like, example_set, answered):
    prompt = encode(example_set(answered("Hi", "so 72")), sentencepiece_like, template="chat").prompts[0]
    assert prompt.input_ids.count(sentencepiece_like.bos_token_id) == 1
    prompt = encode(example_set(answered("Hi", "so 72")), byte_level, template="chat").prompts[0]
    assert byte_level.decode(prompt.input_ids[prompt.answer_start :]) == "so 72<|im_end|>\n"
    assert byte_level.decode(prompt.input_ids[: prompt.answer_start]).endswith("<|im_start|>assistant\n")


def test_without_a_completion_there_is_no_answer(byte_level, example_set):
    examples = example_set(Example("plain text"), Example("Hi you", messages=(Message("user", "Hi you"),)))
    for template in ("raw", "chat"):
        chosen = examples if template == "raw" else example_set(examples.examples[1])
        for prompt in encode(chosen, byte_level, template=template).prompts:
            assert prompt.answer_start == len(prompt.input_ids)


def test_long_samples_are_cut_and_counted(byte_level, example_set, answered):
    examples = example_set(answered(PROMPT, COMPLETION), answered("Hi", "so 72"), answered(PROMPT * 5, COMPLETION))
    whole = encode(examples, byte_level, max_length=1000)
    assert (whole.truncated, whole.completion_lost) == (0, ())
    cut = encode(examples, byte_level, max_length=20)
    assert (cut.truncated, cut.completion_lost) == (2, (2,))
    assert [prompt.input_ids for prompt in cut.prompts] == [prompt.input_ids[:20] for prompt in whole.prompts]
    assert cut.prompts[2].answer_start == 20


def test_a_cut_just_before_the_completion_loses_it(byte_level, example_set, answered):
    start = encode(example_set(answered(PROMPT, COMPLETION)), byte_level).prompts[0].answer_start
    for length, lost in ((start, (0,)), (start + 1, ())):
        assert encode(example_set(answered(PROMPT, COMPLETION)), byte_level, max_length=length).completion_lost == lost


def test_short_samples_are_left_out_by_name(byte_level, example_set):
    encoded = encode(example_set(Example("a"), Example("several tokens"), Example("b")), byte_level)
    assert encoded.too_short == (0, 2)
    assert [prompt.index for prompt in encoded.prompts] == [1]


def test_end_of_text_belongs_to_the_answer(byte_level, example_set, answered):
    unanswered = Example("Hi you", messages=(Message("user", "Hi you"),))
    examples = example_set(answered(PROMPT, COMPLETION), Example("plain text"), unanswered)
    end = byte_level.eos_token_id
    bare, ended = (encode(examples, byte_level, add_eos=add).prompts for add in (False, True))
    assert ended[0].input_ids == (*bare[0].input_ids, end)
    assert ended[0].answer_start == bare[0].answer_start
    assert ended[1].input_ids == (*bare[1].input_ids, end)
    assert ended[1].answer_start == len(ended[1].input_ids)
    assert ended[2] == bare[2]


def test_a_cut_sample_does_not_end(byte_level, example_set, answered):
    prompt = encode(example_set(answered(PROMPT, COMPLETION)), byte_level, max_length=12, add_eos=True).prompts[0]
    assert byte_level.eos_token_id not in prompt.input_ids


def test_all_too_short(byte_level, example_set):
    with pytest.raises(MidblockError, match="all 2 prompts are shorter than 3 tokens"):
        encode(example_set(Example("a"), Example("b")), byte_level)


@pytest.mark.parametrize("lengths", [{"max_length": 2}, {"min_tokens": 0}, {"max_length": 0, "min_tokens": 0}])
def test_lengths_that_leave_nothing(lengths, byte_level, example_set):
    with pytest.raises(MidblockError, match="leaves no prompts of"):
        encode(example_set(Example("plain text")), byte_level, **lengths)


def test_no_end_of_text_token(example_set):
    with pytest.raises(MidblockError, match="has no end-of-text token"):
        encode(example_set(Example("plain text")), train_byte_level(eos_token=None), add_eos=True)


class Characters(PreTrainedTokenizer):
    """A tokenizer in Python alone, as some old models still bring."""

    @property
    def vocab_size(self) -> int:
        return 128

    def get_vocab(self) -> dict[str, int]:
        return {chr(code): code for code in range(128)}


def test_a_tokenizer_without_offsets(example_set):
    with pytest.raises(MidblockError, match=r"Characters does not say .*use a fast tokenizer"):
        encode(example_set(Example("plain text")), Characters())
