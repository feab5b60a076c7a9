from tokenizers import processors

from midblock.data import tokenizer_difference

from .conftest import CORPUS, train_byte_level


def test_the_same_tokenizer_has_no_difference(byte_level):
    assert tokenizer_difference(byte_level, train_byte_level(), CORPUS) is None


def test_tokens_that_are_only_added_are_no_difference(byte_level):
    larger = train_byte_level()
    larger.add_special_tokens({"pad_token": "<|pad|>"})
    assert tokenizer_difference(byte_level, larger, CORPUS) is None
    assert tokenizer_difference(larger, byte_level, CORPUS) is None


def test_an_added_token_in_the_texts_is_one(byte_level):
    larger = train_byte_level()
    larger.add_tokens(["Natalia"])
    assert "becomes other ids" in tokenizer_difference(byte_level, larger, CORPUS)


def test_moved_ids_are_counted_and_one_is_named(byte_level):
    other = train_byte_level(["entirely other words that merge in another way", *CORPUS[3:]])
    assert "shared tokens have other ids, first '" in tokenizer_difference(byte_level, other, [])


def test_special_tokens_around_a_text_are_no_difference(byte_level):
    other = train_byte_level()
    other.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", other.eos_token_id)]
    )
    assert other("Hi")["input_ids"] != byte_level("Hi")["input_ids"]
    assert tokenizer_difference(byte_level, other, CORPUS) is None
