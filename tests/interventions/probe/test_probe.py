"""`probe` end to end: its rows, its summary, and the numbers behind them."""

import copy
import json

import numpy as np
import pytest
import torch
import transformers

from midblock.base import MidblockError
from midblock.checkpoints import Pair, SoftPrompt, load_models, prompted, soft_prompt_in
from midblock.data import encode
from midblock.evaluation import exact_interval, exact_match
from midblock.interventions import INTERVENTIONS, probe
from midblock.runs.record import read_record

WRITTEN = {"generate": True, "max_new_tokens": 8}


@pytest.fixture
def pair(taught, tokenizer):
    return Pair.of_models(taught[0], {"sft": taught[1]}, tokenizer)


@torch.no_grad()
def own_scores(model, tokenizer, data):
    """Accuracy and NLL of the answers from the model's own logits, each prompt alone and without padding."""
    nll, right = [], []
    for prompt in encode(data, tokenizer, max_length=256).prompts:
        logits = model(input_ids=torch.tensor([prompt.input_ids])).logits[0].double().log_softmax(-1)
        wanted = torch.tensor(prompt.input_ids[prompt.answer_start :])
        before = logits[prompt.answer_start - 1 : -1]
        nll.append(-before[torch.arange(len(wanted)), wanted])
        right.append(before.argmax(-1) == wanted)
    return float(torch.cat(right).double().mean()), float(torch.cat(nll).mean())


def test_the_last_depth_is_the_model_itself(pair, tokenizer, sums, tmp_path):
    table = probe(pair, sums, output_dir=tmp_path / "run", **WRITTEN)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for variant, model in zip(pair, summary["models"], strict=True):
        accuracy, nll = own_scores(variant.model, tokenizer, sums)
        last = {row.metric: row for row in table.select(model=variant.name, layer=2)}
        assert last["exit_accuracy"].value == accuracy
        assert last["exit_nll"].value == pytest.approx(nll, abs=1e-6)
        assert last["exit_perplexity"].value == pytest.approx(np.exp(nll), rel=1e-6)
        answered = exact_match(variant.model, tokenizer, sums, max_new_tokens=8)
        match = last["exit_exact_match"]
        assert (match.value, match.low, match.high, match.n) == (
            answered.accuracy, *exact_interval(int(answered.correct.sum()), 8), 8,
        )  # fmt: skip
        assert model["name"] == variant.name
        final = {name: (row.value, row.low, row.high) for name, row in last.items()}
        assert {f"exit_{name}": tuple(each.values()) for name, each in model["final"].items()} == final
        assert variant.name in model["reading"]
    assert 0 < summary["models"][0]["final"]["accuracy"]["value"] < summary["models"][1]["final"]["accuracy"]["value"]


@torch.no_grad()
def test_a_soft_prompt_stands_before_the_prompts_and_is_not_scored(pair, tokenizer, sums):
    soft = SoftPrompt(0.3 * torch.randn(4, 32, generator=torch.Generator().manual_seed(0)), "somewhere")
    ours = prompted(pair.base.model, soft)
    table = probe(Pair.of_models(pair.base.model, {"prompted": ours}, tokenizer), sums)
    nll, right = [], []
    for prompt in encode(sums, tokenizer, max_length=256).prompts:
        ids = soft_prompt_in(ours).insert(prompt.input_ids)
        log_probs = ours(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)[4:]
        wanted = torch.tensor(prompt.input_ids[prompt.answer_start :])
        before = log_probs[prompt.answer_start - 1 : -1]
        nll.append(-before[torch.arange(len(wanted)), wanted])
        right.append(before.argmax(-1) == wanted)
    (found,) = table.select(model="prompted", layer=2, metric="exit_nll")
    assert found.value == pytest.approx(float(torch.cat(nll).mean()), abs=1e-6)
    (share,) = table.select(model="prompted", layer=2, metric="exit_accuracy")
    assert share.value == float(torch.cat(right).double().mean())
    (plain,) = table.select(model="base", layer=2, metric="exit_nll")
    assert plain.value == pytest.approx(own_scores(pair.base.model, tokenizer, sums)[1], abs=1e-6)
    assert abs(found.value - plain.value) > 1e-3


def test_rows_and_emergence_agree(pair, sums, tmp_path):
    table = probe(pair, sums, output_dir=tmp_path / "run", **WRITTEN)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {row.metric for row in table} <= set(INTERVENTIONS)
    for model in summary["models"]:
        for name in ("accuracy", "exact_match"):
            curve = table.curve(f"exit_{name}", model["name"])
            assert curve.layer.tolist() == list(range(-1 if name == "accuracy" else 0, 3))
            found = model["emergence"][name]
            reached = curve.layer[curve.value >= curve.value.iloc[-1] / 2].iloc[0]
            assert (found["layer"], found["depth"]) == (reached, (reached + 1) / 3)
            assert found["low"] <= found["layer"] <= found["high"]
    for row in table:
        assert row.low <= row.value <= row.high, row
        assert (row.module, row.dataset, row.n) == ("residual", "builtin:chain_sum", 8)
    emerged = [model["emergence"]["accuracy"]["layer"] for model in summary["models"]]
    assert f"behind block {emerged[0]} in base and block {emerged[1]} in sft, of 3 blocks" in summary["headline"]
    record = read_record(tmp_path / "run")
    assert (record["verb"], record["status"], record["seed"]) == ("probe", "done", 0)
    assert not (tmp_path / "run" / "partial").exists()


def test_padding_and_batches_are_nothing(pico, tuned_from, tokenizer, sums):
    base = pico("gpt2").double()
    pair = Pair.of_models(base, {"sft": tuned_from(base)}, tokenizer)
    alone, together = (probe(pair, sums, region="all", batch_tokens=size).frame for size in (1, 10_000))
    numbers = ["value", "low", "high"]
    assert alone.drop(columns=numbers).equals(together.drop(columns=numbers))
    np.testing.assert_allclose(alone[numbers], together[numbers], rtol=1e-9, atol=0)
    assert not alone.equals(probe(pair, sums, region="answer", batch_tokens=1).frame)


def test_every_family_is_probed(family, pico, tokenizer, sums):
    pair = Pair.of_models(pico(family), {}, tokenizer)
    table = probe(pair, sums, generate=True, generate_layers="1", generate_samples=2, max_new_tokens=2)
    assert table.curve("exit_nll", "base").layer.tolist() == [-1, 0, 1, 2]
    assert table.curve("exit_exact_match", "base").layer.tolist() == [1]


def test_a_lone_model_keeps_its_name(pico, saved, sums, tmp_path):
    pair = load_models(saved(pico("llama"), "mine"), device="cpu")
    table = probe(pair, sums, output_dir=tmp_path / "run")
    assert set(table.frame.model) == {"mine"}
    (model,) = json.loads((tmp_path / "run" / "summary.json").read_text())["models"]
    assert model["name"] == "mine"
    (recorded,) = read_record(tmp_path / "run")["models"]
    assert recorded["name"] == "mine"
    assert "role" not in recorded


def test_a_model_that_knows_nothing(pico, tokenizer, sums, tmp_path):
    model = pico("llama")
    with torch.no_grad():
        model.model.norm.weight.zero_()  # every token is as likely: the first, which is padding, wins
    probe(Pair.of_models(model, {}, tokenizer), sums, output_dir=tmp_path / "run", **WRITTEN)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (found,) = summary["models"]
    assert (summary["headline"], found["emergence"]) == ("No answer token is predicted rightly, at any depth", {})
    assert found["final"]["nll"]["value"] == pytest.approx(np.log(300), abs=1e-9)


def test_a_resized_vocabulary_is_read_over_the_shared_tokens(taught, tokenizer, sums, tmp_path):
    more = copy.deepcopy(taught[0])
    more.resize_token_embeddings(310, mean_resizing=False)
    with torch.no_grad():
        more.lm_head.weight[300:] = 100.0  # would win, or take the probability, if they counted
    table = probe(Pair.of_models(taught[0], {"more": more}, tokenizer), sums, output_dir=tmp_path / "run")
    ours, theirs = (table.select(model=name).frame for name in ("base", "more"))
    assert theirs.drop(columns="model").reset_index(drop=True).equals(ours.drop(columns="model"))
    assert any("the 300 shared rows are compared" in note for note in read_record(tmp_path / "run")["notes"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda pico: pico("opt", do_layer_norm_before=False), "no final norm found in OPTForCausalLM"),
        (
            lambda pico: transformers.LlamaModel(pico("llama").config).eval(),
            "no output head found in LlamaModel .*causal language models",
        ),
    ],
)
def test_a_model_without_the_parts(pico, tokenizer, sums, make, message):
    with pytest.raises(MidblockError, match=message):
        probe(Pair.of_models(make(pico), {}, tokenizer), sums)


def test_answers_that_cannot_be_read_are_refused_before_anything_is_measured(pair, sums):
    with pytest.raises(MidblockError, match=r"unknown reader 'gsm8' .*did you mean 'gsm8k'"):
        probe(pair, sums, generate=True, reader="gsm8", progress=Never())
    with pytest.raises(MidblockError, match="names block 6; the model has 0 to 2"):
        probe(pair, sums, generate=True, generate_layers="6-7", progress=Never())


class Never:
    def phase(self, title, total):
        assert title != "probing"
        return lambda amount: None
