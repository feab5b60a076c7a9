"""From a reference to the token ids that every model of a run reads."""

import dataclasses

import pytest
import torch

from midblock.base import MidblockError
from midblock.checkpoints import Pair
from midblock.data import Example, ExampleSet, load_dataset
from midblock.runs.reading import (
    DataSettings,
    ReadingSettings,
    check_least,
    check_reading,
    common_tokenizer,
    load_samples,
    read,
)


@pytest.fixture
def pair(pico, tuned_from, tokenizer):
    base = pico("llama")
    return Pair.of_models(base, {"sft": tuned_from(base)}, tokenizer)


def made(*examples):
    return ExampleSet("made", "", "question/answer", tuple(examples), "hash")


def test_a_reference_and_its_samples_give_the_same_ids(pair):
    settings = ReadingSettings(num_samples=6, seed=3)
    first = read(pair, "builtin:chain_sum", settings)
    samples = load_dataset("builtin:chain_sum", num_samples=6, seed=3)
    second = read(pair, samples, settings)
    assert first.tokens == second.tokens
    assert first.facts == second.facts
    assert first.facts["tokens"] == sum(len(prompt.input_ids) for prompt in first.tokens.prompts)
    assert first.facts["content_hash"] == samples.content_hash
    assert first.reference == "builtin:chain_sum"


def test_batches_hold_each_sample_once_within_the_budget(pair):
    reading = read(pair, "builtin:chain_sum", ReadingSettings(num_samples=9))
    batches = reading.batches(200)
    assert sorted(torch.cat([batch.index for batch in batches]).tolist()) == list(range(9))
    assert all(batch.input_ids.numel() <= 200 or len(batch.index) == 1 for batch in batches)


def test_samples_without_the_region_are_counted_out(pair):
    data = made(Example("a question", "an answer"), Example("a text without an answer"))
    for region, left in (("all", 2), ("answer", 1), ("prompt", 2)):
        reading = read(pair, data, ReadingSettings(region=region))
        assert len(reading.tokens.prompts) == left
        assert reading.facts["without_region"] == 2 - left


def test_nothing_left_is_for_the_verb_to_refuse(pair):
    reading = read(pair, made(Example("a text")), ReadingSettings(region="answer"))
    assert reading.tokens.prompts == ()
    assert reading.facts["tokens"] == 0


def test_ids_that_a_model_does_not_know_are_refused(pair, pico, tokenizer):
    small = pico("llama", vocab_size=200)
    lone = Pair.of_models(small, {}, tokenizer)
    with pytest.raises(MidblockError, match=r"token id \d+ of the text is beyond the 200 ids all models share"):
        read(lone, made(Example("How many apples does she have?")), ReadingSettings())


def test_tokenizers_that_disagree_are_refused(pair, tokenizer):
    other = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<bos>", eos_token="<eos>")
    other.add_tokens(["apples"])
    disagreeing = dataclasses.replace(pair)
    disagreeing.other_tokenizers = {"sft": other}
    with pytest.raises(MidblockError, match="the tokenizers of the base and of sft differ"):
        common_tokenizer(disagreeing, made(Example("How many apples?")), "raw")
    assert common_tokenizer(disagreeing, made(Example("How many pears?")), "raw") is disagreeing.tokenizer


def test_samples_in_memory_are_taken_as_they_are():
    data = made(Example("one"), Example("two"))
    assert load_samples(data, DataSettings(num_samples=1)) is data


def test_a_second_draw_shares_none_with_the_first():
    settings = DataSettings(num_samples=5, split="test")
    first, second = (load_samples("builtin:chain_sum", settings, skip=skip) for skip in (0, 5))
    assert not {example.text for example in first} & {example.text for example in second}
    assert load_samples("builtin:chain_sum", settings, count=3).examples == first.examples[:3]


def test_options_out_of_range_are_named():
    with pytest.raises(MidblockError, match=r"unknown region 'answers' \(did you mean 'answer'\?\)"):
        check_reading(ReadingSettings(region="answers"), fewest=2)
    with pytest.raises(MidblockError, match="num_samples is 1; it must be 2 or more"):
        check_reading(ReadingSettings(num_samples=1), fewest=2)
    with pytest.raises(MidblockError, match="max_length is 2; it must be 3 or more"):
        check_reading(ReadingSettings(max_length=2), fewest=2)
    with pytest.raises(MidblockError, match="seed is -1; it must be 0 or more"):
        check_least(ReadingSettings(seed=-1), seed=0)
