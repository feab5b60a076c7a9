"""Prompts that come more than once, and numbers that have no value: what is measured, and what is said."""

import json
import random

import pytest
import torch

from midblock.analysis import analyze
from midblock.analysis.layers_in_words import layers_in_words
from midblock.analysis.repeats import repeats_of, with_one_state
from midblock.base import LayerTable, MidblockError
from midblock.checkpoints import Pair
from midblock.data import Example, ExampleSet, TokenizedPrompt
from midblock.data.examples import hash_examples
from midblock.runs.record import read_record
from midblock.trace import RowStatistic


def examples_of(pairs):
    made = tuple(Example(prompt, answer) for prompt, answer in pairs)
    return ExampleSet("some:data", "test", "question/answer", made, hash_examples(made))


@pytest.fixture(scope="module")
def pair(pico, tuned_from, tokenizer):
    base = pico("llama")
    return Pair.of_models(base, {"sft": tuned_from(base)}, tokenizer)


def run(pair, data, folder, **options):
    analyze(pair, data, output_dir=str(folder), num_samples=len(data), weights=False, **options)
    return LayerTable.read(folder), read_record(folder)


def two_nn(X):
    apart = torch.cdist(X, X).fill_diagonal_(torch.inf)
    near = apart.topk(2, largest=False).values
    return len(X) / float((near[:, 1] / near[:, 0]).log().sum())


def test_copies_do_not_raise_the_intrinsic_dimension(pair, tokenizer, tmp_path):
    stream = random.Random(0)
    texts = [(f"what is {stream.randint(100, 999)} and {stream.randint(100, 999)}", "ok") for _ in range(20)]
    data = examples_of(texts + texts[:9])
    table, record = run(pair, data, tmp_path / "run", metrics="intrinsic_dimension", batch_tokens=40)
    states = []
    for prompt, answer in texts:
        ids = torch.tensor([tokenizer(f"{prompt}\n{answer}")["input_ids"]])
        with torch.no_grad():
            found = pair.base.model(input_ids=ids, output_hidden_states=True).hidden_states
        states.append(torch.stack([layer[0].double().mean(0) for layer in found[:3]]))
    X = torch.stack(states)
    curve = table.curve("intrinsic_dimension", "base").set_index("layer").value
    for layer in (-1, 0, 1):
        assert curve[layer] == pytest.approx(two_nn(X[:, layer + 1]), rel=1e-4)
    assert any("9 of 29 prompts repeat the tokens of an earlier one" in note for note in record["notes"])


def test_different_prompts_have_no_such_note(pair, tmp_path):
    data = examples_of([(f"what is {i} and {i * i}", "ok") for i in range(12)])
    _, record = run(pair, data, tmp_path / "run", metrics="intrinsic_dimension,curvature", num_token_samples=4)
    assert not any("prompts repeat" in note or "different states" in note for note in record["notes"])


def test_one_number_without_a_value_costs_its_rows(pair, tmp_path):
    """Answers of one token are two different rows at the embedding, however many prompts there are."""
    data = examples_of([(f"is {i} even?", "yn"[i % 2]) for i in range(16)])
    table, record = run(pair, data, tmp_path / "run", region="answer", num_token_samples=4)
    assert table.curve("intrinsic_dimension", "base").layer.tolist() == [0, 1, 2, 3]
    assert table.curve("cka_debiased", "sft").layer.tolist() == [-1, 0, 1, 2, 3]
    for model in ("base", "sft"):
        said = f"intrinsic_dimension of {model} is not defined at layer -1 (of 16 prompts too few differ there)"
        assert f"{said}: left out." in record["notes"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["headline"].startswith("sft's tuning acts")


def test_what_was_asked_for_alone_and_has_no_value_is_an_error(pair):
    data = examples_of([("is it even?", "yn"[i % 2]) for i in range(16)])
    options = {"num_samples": 16, "weights": False, "region": "prompt"}
    with pytest.raises(MidblockError, match=r"intrinsic_dimension of base is not defined at layers -1 to 3 \(of 16"):
        analyze(pair, data, metrics="intrinsic_dimension", **options)
    assert analyze(pair, data, metrics="intrinsic_dimension,l2_norm", **options).metrics[0] == "l2_norm"


def tokenized(*prompts):
    return [TokenizedPrompt(index, tuple(ids), start) for index, (ids, start) in enumerate(prompts)]


def test_which_prompts_repeat_depends_on_the_region():
    prompts = tokenized(([1, 2, 3], 2), ([1, 2, 4], 2), ([1, 2, 3], 2), ([1, 2, 3], 1), ([5, 2, 3], 2))
    assert repeats_of(prompts, "all") == {2: 0, 3: 0}
    assert repeats_of(prompts, "answer") == {2: 0}
    assert repeats_of(prompts, "prompt") == {1: 0, 2: 0}


def test_the_first_that_is_there_gives_the_state():
    rows = RowStatistic(torch.tensor([1, 4, 6, 7]), torch.arange(4.0)[:, None])
    assert with_one_state(rows, {4: 0, 6: 0, 7: 1}).values.flatten().tolist() == [0, 1, 1, 0]
    assert with_one_state(rows, {}) is rows


@pytest.mark.parametrize(
    ("layers", "said"), [([3], "layer 3"), ([2, -1, 0], "layers -1 to 0, 2"), ([5, 1], "layers 1, 5")]
)
def test_layers_in_words(layers, said):
    assert layers_in_words(layers) == said
