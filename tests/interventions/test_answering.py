"""From a dataset to the tokens that are predicted: what is refused, and what a reader is told."""

import json

import pytest

from midblock.base import MidblockError
from midblock.checkpoints import Pair, load_pair
from midblock.data import Example, ExampleSet, load_dataset
from midblock.interventions import ProbeSettings, SwapSettings
from midblock.interventions.answering import AnsweringSettings, read_answers


@pytest.fixture
def pair(pico, tokenizer):
    return Pair.of_models(pico("llama"), {"sft": pico("llama")}, tokenizer)


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"How many apples are {n}?"}) + "\n" for n in range(4)))
    return str(path)


def test_answers_are_what_is_predicted(pair, tokenizer, sums):
    answers = read_answers(pair, sums, AnsweringSettings(batch_tokens=200))
    assert len(answers.batches) > 1
    said = {}
    for targets in answers.targets:
        for row, index in enumerate(targets.index.tolist()):
            said[index] = tokenizer.decode(targets.tokens[targets.rows == row].tolist())
    assert [said[n].strip() for n in range(8)] == [example.completion for example in sums]
    assert answers.reference == "builtin:chain_sum"
    assert (answers.facts["num_samples"], answers.facts["region"]) == (8, "answer")
    assert answers.notes() == []


def test_data_without_answers_takes_one_line(pair, texts):
    message = rf"^only 0 of 4 examples of {texts} can be measured \(--region all counts every token\)$"
    with pytest.raises(MidblockError, match=message):
        read_answers(pair, texts, AnsweringSettings(num_samples=4))
    answers = read_answers(pair, texts, AnsweringSettings(region="all", num_samples=4))
    assert answers.facts["num_samples"] == 4


def test_a_reference_is_drawn_with_the_seed(pair):
    drawn = read_answers(pair, "builtin:chain_sum", AnsweringSettings(num_samples=5, seed=3))
    expected = load_dataset("builtin:chain_sum", num_samples=5, seed=3)
    assert drawn.examples.content_hash == expected.content_hash


def test_what_was_left_out_or_cut_is_told(pair):
    given = [("How many", "7"), ("How much", ""), ("H", ""), ("apples " * 30, "8"), ("She has", "3 + 4 apples")]
    examples = tuple(Example(prompt, completion) for prompt, completion in given)
    data = ExampleSet("made here", "", "made here", examples, "")
    answers = read_answers(pair, data, AnsweringSettings(max_length=12))
    assert sorted(index for targets in answers.targets for index in targets.index.tolist()) == [0, 4]
    assert answers.notes() == [
        "1 example(s) too short to be measured: left out.",
        "2 example(s) without a token in the region 'answer': left out.",
        "1 example(s) cut at 12 tokens.",
    ]


def test_ids_beyond_a_models_own_are_refused(pico, tokenizer, sums):
    small = pico("llama", vocab_size=40)
    pair = Pair.of_models(pico("llama"), {"sft": small}, tokenizer)
    with pytest.raises(MidblockError, match="beyond the 40 ids all models share"):
        read_answers(pair, sums, AnsweringSettings())


def test_tokenizers_that_disagree(pico, saved, sums, tmp_path):
    first, second = saved(pico("llama"), "start"), saved(pico("llama"), "sft")
    file = tmp_path / "sft" / "tokenizer.json"
    written = json.loads(file.read_text())
    vocabulary = written["model"]["vocab"]
    vocabulary["1"], vocabulary["2"] = vocabulary["2"], vocabulary["1"]
    file.write_text(json.dumps(written))
    with pytest.raises(MidblockError, match="the tokenizers of the base and of sft differ"):
        read_answers(load_pair(first, second, device="cpu"), sums, AnsweringSettings())


@pytest.mark.parametrize("settings", [ProbeSettings, SwapSettings])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"region": "anwser"}, "unknown region 'anwser' .*did you mean 'answer'"),
        ({"num_samples": 1}, "num_samples is 1; it must be 2 or more"),
        ({"max_length": 2}, "max_length is 2; it must be 3 or more"),
        ({"batch_tokens": 0}, "batch_tokens is 0; it must be 1 or more"),
        ({"generate_samples": 0}, "generate_samples is 0; it must be 1 or more"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be 1 or more"),
    ],
)
def test_settings_out_of_range(settings, options, message):
    with pytest.raises(MidblockError, match=message):
        settings(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cumulative": "botom"}, "unknown cumulative 'botom' .*did you mean 'bottom'"),
        ({"direction": "into_bse"}, "unknown direction 'into_bse' .*did you mean 'into_base'"),
        ({"heads": "tune"}, "unknown heads 'tune' .*did you mean 'tuned'"),
        ({"segments": "many"}, r"segments is 'many' \(a number such as 5, or each\)"),
    ],
)
def test_swap_settings_out_of_range(options, message):
    with pytest.raises(MidblockError, match=message):
        SwapSettings(**options)
