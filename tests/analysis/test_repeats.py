"""Prompts that come more than once, and numbers that have no value: what is measured, and what is said."""

import json
import random

import pytest
import torch

from midblock.analysis import analyze
from midblock.analysis.layers_in_words import layers_in_words
from midblock.analysis.repeats import alike_by_tokens, repeats_of, with_one_state
from midblock.base import LayerTable, MidblockError
from midblock.base.clusters import Clusters
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


def texts_of(count):
    stream = random.Random(1)
    return [(f"what is {stream.randint(10, 999)} and {stream.randint(10, 999)}", f"ok {n % 7}") for n in range(count)]


def both_ends(table):
    frame = table.frame[~table.frame.metric.str.contains(".", regex=False)]
    return frame.set_index(["model", "layer", "metric"])[["value", "low", "high"]]


def test_copies_of_every_prompt_are_no_further_evidence(pair, tmp_path):
    """The truth is planted: thrice the same prompts say what they say once, as surely and no more so."""
    options = {"metrics": "change_own,change_intensity_relative,logit_kl,logit_agreement,kl_answers,l2_norm"}
    once, _ = run(pair, examples_of(texts_of(24)), tmp_path / "once", num_token_samples=24, **options)
    thrice, record = run(pair, examples_of(texts_of(24) * 3), tmp_path / "thrice", num_token_samples=72, **options)
    ours, theirs = both_ends(once), both_ends(thrice)
    assert ours.index.equals(theirs.index)
    assert theirs.value.to_numpy() == pytest.approx(ours.value.to_numpy(), rel=1e-4, abs=1e-7)
    widths = [(each.high - each.low).to_numpy() for each in (ours, theirs)]
    assert (widths[0] > 0).sum() > 20
    assert widths[1] == pytest.approx(widths[0], rel=2e-3, abs=1e-6)
    assert set(thrice.curve("change_own", "sft").n) == {72}
    assert any("intervals resample a prompt together with its repeats" in note for note in record["notes"])


def test_nulls_and_floors_keep_copies_together(pair, tmp_path):
    """Of a prompt and its copy neither is unrelated to the other, nor is one half of the data the other's."""
    options = {"metrics": "cosine_similarity,cosine_centered,l2_norm"}
    once, _ = run(pair, examples_of(texts_of(16)), tmp_path / "once", **options)
    fourfold, _ = run(pair, examples_of(texts_of(16) * 4), tmp_path / "fourfold", **options)
    for metric, reference, model in (("cosine_centered", ".null", "sft"), ("l2_norm", ".split_floor", "base")):
        ours, theirs = (table.curve(metric + reference, model) for table in (once, fourfold))
        assert theirs.value.to_numpy() == pytest.approx(ours.value.to_numpy(), rel=0.2, abs=0.02)
        if reference == ".null":
            spans = [(each.high - each.low).to_numpy() for each in (ours, theirs)]
            assert spans[1] == pytest.approx(spans[0], rel=0.3)


@pytest.mark.parametrize("different", [1, 2])
def test_one_or_two_prompts_many_times_claim_nothing(pair, tmp_path, different):
    data = examples_of(texts_of(different) * (40 // different))
    table, record = run(pair, data, tmp_path / "run", num_token_samples=40)
    estimates = both_ends(table).drop("logit_agreement", level="metric", errors="ignore" if different == 1 else "raise")
    assert estimates[["low", "high"]].isna().all(axis=None)
    assert not [name for name in table.metrics if different == 1 and name.endswith((".null", ".split_floor"))]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "Prompts are too few for intervals." in summary["headline"]
    assert summary["models"][0]["detectable"] == {}
    assert not summary["models"][0]["evidence"]["one_block_leads"]
    assert f"{different} different prompts are few" in " ".join(record["notes"])
    assert "Fewer than 4 different ones give no interval of a mean" in " ".join(record["notes"])


def test_a_repeat_joins_two_questions():
    questions = ["a", "b", "", "a", "c", ""]
    assert Clusters.of(questions).numbers.tolist() == [0, 1, 2, 0, 3, 4]
    joined = Clusters.of(questions, {4: 1, 5: 0})
    assert (joined.numbers.tolist(), joined.count) == ([0, 1, 2, 0, 1, 0], 3)
    assert Clusters.of(questions, {1: 0, 4: 1, 2: 1, 5: 5}).numbers.tolist() == [0, 0, 0, 0, 0, 1]
    assert Clusters.of(["", ""], {1: 1}) is None
    assert alike_by_tokens([2, 4, 5], {4: 0, 5: 0}).numbers.tolist() == [0, 1, 1]


def test_examples_that_say_the_same_are_one_cluster():
    assert examples_of([("a", "b"), ("a", "c"), ("a", "b")]).clusters.numbers.tolist() == [0, 1, 0]
    assert examples_of([("a", "b"), ("a", "c")]).clusters is None
