"""Metrics without sink tokens: a planted sink rules the numbers over all tokens, and none without it."""

import copy
import json

import pytest
import torch

from midblock.analysis import analyze
from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, Pair, load_pair
from midblock.data import load_dataset
from midblock.metrics.metric import NO_SINKS, is_estimate
from midblock.report import write_report
from midblock.runs.record import read_record
from midblock.trace import hold_states

SMALL = {"num_samples": 8, "num_token_samples": 6, "weights": False}
METRICS = "cka_debiased,change_own,change_intensity_relative,sink_share,prompt_entropy,l2_norm"


@pytest.fixture(scope="module")
def data():
    return load_dataset("builtin:chain_sum", num_samples=8)


@pytest.fixture(scope="module")
def planted(pico, tokenizer, data):
    """A base in which one token of each prompt, not the first, is a hundred times as long; and a tuned one."""
    base = copy.deepcopy(pico("llama"))
    prompts = [tokenizer(example.text).input_ids for example in data]
    token = next(token for token in prompts[0][1:] if all(ids.count(token) == 1 for ids in prompts))
    with torch.no_grad():
        base.get_input_embeddings().weight[token] *= 100
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for value in Anatomy.of(tuned).blocks[1].parameters():
            value += 0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    return base, tuned, token


def test_rows_without_sinks_are_those_of_the_other_tokens(planted, tokenizer, data):
    base, tuned, token = planted
    table = analyze(Pair.of_models(base, {"sft": tuned}, tokenizer), data, metrics=METRICS, **SMALL)
    means, norms = [], []
    for example in data:
        ids = tokenizer(example.text).input_ids
        states = hold_states(Anatomy.of(base), torch.tensor([ids])).states[1][0].double()
        others = torch.tensor([each != token for each in ids])
        norms.append(float(states[others].mean(0).norm()))
        means.append(float(states.mean(0).norm()))
    at = lambda metric: float(table.curve(metric, "base").set_index("layer").value[1])  # noqa: E731
    assert at("l2_norm.no_sinks") == pytest.approx(sum(norms) / len(norms), rel=1e-4)
    assert at("l2_norm") == pytest.approx(sum(means) / len(means), rel=1e-4)
    assert at("sink_share") > 0.5 > at("sink_share.no_sinks")
    assert {"cka_debiased.no_sinks.null", "cka_debiased.no_sinks.precision_floor"} <= set(table.metrics)
    both = {metric for metric in table.metrics if is_estimate(metric)}
    assert {metric.removesuffix(NO_SINKS) + NO_SINKS for metric in both} <= both


def test_without_a_sink_there_is_one_set_of_numbers(pico, tuned_from, tokenizer, data):
    base = pico("llama")
    table = analyze(Pair.of_models(base, {"sft": tuned_from(base)}, tokenizer), data, metrics=METRICS, **SMALL)
    assert not any(NO_SINKS in metric for metric in table.metrics)


@pytest.mark.parametrize(("tokens", "plain", "without"), [("all", True, False), ("no-sinks", False, True)])
def test_one_set_of_tokens_alone(planted, tokenizer, data, tokens, plain, without):
    base, tuned, _ = planted
    pair = Pair.of_models(base, {"sft": tuned}, tokenizer)
    table = analyze(pair, data, metrics=f"{METRICS},kl_answers", tokens=tokens, **SMALL)
    assert ("cka_debiased" in table.metrics, "cka_debiased.no_sinks" in table.metrics) == (plain, without)
    assert "kl_answers" in table.metrics  # no mean over tokens' states


def test_the_first_token_by_its_own_rule(pico, tuned_from, tokenizer, data):
    base = pico("llama")
    pair = Pair.of_models(base, {"sft": tuned_from(base)}, tokenizer)
    table = analyze(pair, data, metrics="l2_norm", sinks="first", **SMALL)
    norms = []
    for example in data:
        states = hold_states(Anatomy.of(base), torch.tensor([tokenizer(example.text).input_ids])).states[2][0]
        norms.append(float(states[1:].double().mean(0).norm()))
    found = table.curve("l2_norm.no_sinks", "base").set_index("layer").value[2]
    assert float(found) == pytest.approx(sum(norms) / len(norms), rel=1e-4)


@pytest.mark.parametrize(
    ("option", "value"), [("tokens", "no-sink"), ("tokens", ""), ("sinks", "tall"), ("sinks", "1")]
)
def test_other_words_are_refused(option, value, planted, tokenizer, data):
    base, tuned, _ = planted
    with pytest.raises(MidblockError):
        analyze(Pair.of_models(base, {"sft": tuned}, tokenizer), data, **SMALL, **{option: value})


def test_a_run_tells_of_sinks_and_controls_and_its_page_shows_them(planted, tokenizer, data, tmp_path):
    base, tuned, _ = planted
    for model, name in ((base, "start"), (tuned, "sft")):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    pair = load_pair(str(tmp_path / "start"), str(tmp_path / "sft"), device="cpu")
    options = {
        "metrics": METRICS,
        "controls": "random,equal-step",
        "control_draws": 2,
        "general": "builtin:gsm_symbolic",
    }
    run = tmp_path / "run"
    table = analyze(pair, "builtin:chain_sum", output_dir=run, **options, **SMALL)
    notes = read_record(run)["notes"]
    assert any("sink tokens (norm above 10 × the prompt's median)" in note for note in notes)
    controls = json.loads((run / "summary.json").read_text())["models"][0]["controls"]
    assert controls["random"]["change_own"]["below"] == []
    assert controls["equal_step"]["lean"] in ("persists", "no lean")  # one block moved: its step is what it was
    assert {"change_own.no_sinks.random", "change_own.no_sinks.equal_step"} <= set(table.metrics)
    page = write_report(run).read_text()
    for words in ("Own and inherited", "Sink tokens", "more than half of a prompt", "Own change under equal steps"):
        assert words in page


def test_a_change_of_the_sink_alone_is_none_without_it(planted, tokenizer, data):
    base, _, token = planted
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.get_input_embeddings().weight[token] *= 1.5
    pair = Pair.of_models(base, {"sft": tuned}, tokenizer)
    table = analyze(pair, data, metrics="change_intensity_relative,change_own", **SMALL)
    at = lambda metric: table.curve(metric, "sft").set_index("layer").value  # noqa: E731
    assert at("change_intensity_relative")[-1] > 0.1
    assert at("change_intensity_relative.no_sinks")[-1] == 0
    assert (at("change_own") == 0).all()  # no block was changed
