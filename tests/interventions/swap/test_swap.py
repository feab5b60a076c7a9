"""`swap` end to end: its numbers against models exchanged by hand, and its tables against each other."""

import copy
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from midblock.base import MidblockError
from midblock.checkpoints import Pair
from midblock.data import encode
from midblock.evaluation import exact_interval, exact_match
from midblock.interventions import INTERVENTIONS, swap
from midblock.interventions.swap.exchange import exchanged
from midblock.runs.record import read_record

SMALL = {"segments": "3", "max_new_tokens": 8}
NAMES = ("base", "sft")


@pytest.fixture
def pair(taught, tokenizer):
    return Pair.of_models(taught[0], {"sft": taught[1]}, tokenizer)


def ends(model, part):
    """What the summary says about a metric of a cell, without its change."""
    return {name: model[part][name] for name in ("value", "low", "high")}


@torch.no_grad()
def own_scores(model, tokenizer, data):
    """Accuracy and NLL of the answers from the model's own logits, each prompt alone and without padding."""
    nll, right = [], []
    for prompt in encode(data, tokenizer, max_length=256).prompts:
        logits = model(input_ids=torch.tensor([prompt.input_ids]), use_cache=False).logits[0].double().log_softmax(-1)
        wanted = torch.tensor(prompt.input_ids[prompt.answer_start :])
        before = logits[prompt.answer_start - 1 : -1]
        nll.append(-before[torch.arange(len(wanted)), wanted])
        right.append(before.argmax(-1) == wanted)
    return float(torch.cat(right).double().mean()), float(torch.cat(nll).mean())


def swapped(pair, cell):
    """The model of a cell, made by hand."""
    models = dict(zip(NAMES, (variant.model for variant in pair), strict=True))
    host, donor = models[cell["host"]], models[cell["donor"]]
    blocks = range(cell["first"], cell["last"] + 1) if cell["last"] >= 0 else ()
    other = cell["head"] != ("base_head" if cell["host"] == "base" else "tuned_head")
    return host, exchanged(host, donor, blocks, head=other, embedding=cell["last"] < 0)


@pytest.mark.parametrize(
    "options",
    [
        {"segments": "2", "generate": True},
        {"segments": "each", "direction": "into_base"},
        {"segments": "2", "depth": 1, "direction": "into_tuned"},
        {"segments": "3", "cumulative": "bottom", "direction": "into_tuned"},
        {"segments": "3", "cumulative": "top", "direction": "into_base"},
    ],
)
def test_cells_are_models_exchanged_by_hand(pair, tokenizer, sums, tmp_path, options):
    swap(pair, sums, output_dir=tmp_path / "run", max_new_tokens=8, **options)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    segments = 3 if options["segments"] == "each" else int(options["segments"])
    with_embedding = 0 if "cumulative" in options else 1
    assert len(summary["cells"]) == (2 if "direction" in options else 4) * (segments + with_embedding)
    assert summary["mode"] == options.get("cumulative", "each" if options["segments"] == "each" else "segments")
    assert (summary["base"], summary["tuned"], summary["depth"]) == ("base", "sft", options.get("depth"))
    accuracies = set()
    for cell in summary["cells"]:
        host, inside = swapped(pair, cell)
        with inside:
            accuracy, nll = own_scores(host, tokenizer, sums)
            match = exact_match(host, tokenizer, sums, max_new_tokens=8) if "generate" in options else None
        assert cell["accuracy"]["value"] == accuracy
        assert cell["nll"]["value"] == pytest.approx(nll, abs=1e-6)
        assert cell["perplexity"]["value"] == pytest.approx(math.exp(nll), rel=1e-6)
        assert ("exact_match" in cell) == (match is not None)
        if match is not None:
            low, high = exact_interval(int(match.correct.sum()), 8)
            assert ends(cell, "exact_match") == {"value": match.accuracy, "low": low, "high": high}
        accuracies.add(accuracy)
    assert len(accuracies) > 1


def test_references_are_the_models_alone(pair, tokenizer, sums, tmp_path):
    table = swap(pair, sums, output_dir=tmp_path / "run", generate=True, **SMALL)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    found = {(each["body"], each["head"]): each for each in summary["references"]}
    assert len(found) == len(summary["references"]) == 4
    for variant, head in zip(pair, ("base_head", "tuned_head"), strict=True):
        accuracy, nll = own_scores(variant.model, tokenizer, sums)
        own = found[variant.name, head]
        assert own["accuracy"]["value"] == accuracy
        assert own["nll"]["value"] == pytest.approx(nll, abs=1e-6)
        assert own["exact_match"]["value"] == exact_match(variant.model, tokenizer, sums, max_new_tokens=8).accuracy
        # a body with the other's head is that model with only its head exchanged
        cell = {"host": variant.name, "donor": NAMES[1 - NAMES.index(variant.name)], "first": 0, "last": -1}
        other = {"base_head": "tuned_head", "tuned_head": "base_head"}[head]
        host, donor = (model.model for model in (pair if variant.name == "base" else reversed(list(pair))))
        with exchanged(host, donor, head=True):
            accuracy, nll = own_scores(host, tokenizer, sums)
        assert found[cell["host"], other]["accuracy"]["value"] == accuracy
        assert found[cell["host"], other]["nll"]["value"] == pytest.approx(nll, abs=1e-6)
    for (body, head), each in found.items():
        for name in ("accuracy", "nll", "perplexity", "exact_match"):
            (row,) = table.select(model=body, module=head, metric=f"swap_{name}.reference")
            assert row.layer == 3
            assert each[name] == {"value": row.value, "low": row.low, "high": row.high}


@pytest.mark.parametrize("cumulative", ["none", "bottom", "top"])
def test_rows_summary_and_file_agree(pair, sums, tmp_path, cumulative):
    table = swap(pair, sums, output_dir=tmp_path / "run", generate=cumulative == "top", cumulative=cumulative, **SMALL)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    lines = pd.read_csv(tmp_path / "run" / "cells.csv").to_dict("records")
    prefix = {"none": "swap", "bottom": "swap_bottom", "top": "swap_top"}[cumulative]
    references = {(each["body"], each["head"]): each for each in summary["references"]}
    metrics = ["accuracy", "nll", "perplexity", *(["exact_match"] if cumulative == "top" else [])]
    seen = 0
    for cell, line in zip(summary["cells"], lines, strict=True):
        layer = cell["first"] if cumulative == "top" else cell["last"]
        place = {"model": cell["host"], "module": cell["head"], "layer": layer}
        before = references[cell["host"], cell["head"]]
        for name in metrics:
            (row,) = table.select(metric=f"{prefix}_{name}", **place)
            assert ends(cell, name) == {"value": row.value, "low": row.low, "high": row.high}
            assert row.low <= row.value <= row.high
            seen += 1
            if name == "perplexity":
                continue
            changed = cell[name]
            assert changed["change"] == pytest.approx(row.value - before[name]["value"], abs=1e-12)
            assert changed["change_low"] <= changed["change"] <= changed["change_high"]
            (change,) = table.select(metric=f"{prefix}_{name}_change", **place)
            stated = (changed["change"], changed["change_low"], changed["change_high"])
            assert (change.value, change.low, change.high) == stated
            seen += 1
        flat = {f"{a}_{b}": number for a, part in cell.items() if isinstance(part, dict) for b, number in part.items()}
        plain = {name: value for name, value in cell.items() if not isinstance(value, dict)}
        assert line == pytest.approx(flat | plain)
    assert len(table.frame) == seen + 4 * len(metrics)
    # one number a row: nothing stands twice in one place
    assert not table.frame.duplicated(["model", "module", "layer", "metric"]).any()
    assert {metric.removesuffix(".reference") for metric in table.metrics} <= set(INTERVENTIONS)
    assert read_record(tmp_path / "run")["status"] == "done"


def test_a_swap_of_everything_changes_as_much_as_tuning_did(pair, sums, tmp_path):
    swap(pair, sums, output_dir=tmp_path / "run", segments="1")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    references = {(each["body"], each["head"]): each for each in summary["references"]}
    # with the embedding left behind, the whole of the body is nearly, but not quite, the donor
    place = {"blocks": "0-2", "host": "base", "head": "tuned_head"}
    (whole,) = (cell for cell in summary["cells"] if place.items() <= cell.items())
    assert whole["nll"]["value"] == pytest.approx(references["sft", "tuned_head"]["nll"]["value"], abs=0.1)
    assert whole["nll"]["value"] != references["sft", "tuned_head"]["nll"]["value"]
    assert summary["headline"].startswith("Blocks 0-2 of sft move the answers' NLL most of 2 swaps into base: by -")


@pytest.mark.parametrize(
    ("options", "hosts", "heads"),
    [
        ({}, {"base", "sft"}, {"base_head", "tuned_head"}),
        ({"direction": "into_base", "heads": "tuned"}, {"base"}, {"tuned_head"}),
        ({"direction": "into_tuned", "heads": "base"}, {"sft"}, {"base_head"}),
    ],
)
def test_directions_and_heads(pair, sums, tmp_path, options, hosts, heads):
    whole = swap(pair, sums, segments="3").frame
    part = swap(pair, sums, segments="3", output_dir=tmp_path / "run", **options).frame
    chosen = whole.module.isin(heads) & (whole.model.isin(hosts) | (whole.layer == 3))
    assert part.equals(whole[chosen].reset_index(drop=True))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {(each["host"], each["head"]) for each in summary["cells"]} == {(a, b) for a in hosts for b in heads}
    assert [(each["host"], each["head"]) for each in summary["shape"]] == sorted((a, b) for a in hosts for b in heads)
    assert summary["headline"].startswith(("Block", "The embedding", "None of"))
    assert f"swaps into {'base' if 'base' in hosts else 'sft'}" in summary["headline"]


@pytest.mark.parametrize("name", ["gpt2", "bloom"])
def test_padding_and_batches_are_nothing(pico, tuned_from, tokenizer, sums, name):
    base = pico(name).double()
    pair = Pair.of_models(base, {"sft": tuned_from(base)}, tokenizer)
    alone, together = (swap(pair, sums, region="all", segments="3", batch_tokens=size).frame for size in (1, 10_000))
    numbers = ["value", "low", "high"]
    assert alone.drop(columns=numbers).equals(together.drop(columns=numbers))
    np.testing.assert_allclose(alone[numbers], together[numbers], rtol=1e-9, atol=1e-9)


def test_every_family_is_swapped(family, pico, tuned_from, tokenizer, sums):
    base = pico(family)
    tuned = tuned_from(base)
    pair = Pair.of_models(base, {"sft": tuned}, tokenizer)
    before = copy.deepcopy(base.state_dict()), copy.deepcopy(tuned.state_dict())
    written = {"generate": True, "generate_samples": 1, "max_new_tokens": 1}
    table = swap(pair, sums, segments="2", direction="into_base", heads="tuned", **written)
    for metric in ("swap_nll", "swap_exact_match"):
        assert table.curve(metric, "base", module="tuned_head").layer.tolist() == [-1, 1, 2]
    for model, weights in zip((base, tuned), before, strict=True):
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("asked", "host", "head"),
    [
        ({"direction": "into_tuned"}, 1, 1),
        ({"direction": "into_tuned", "heads": "base"}, 1, 0),
        ({"direction": "into_base"}, 0, 0),
        ({"direction": "into_base", "heads": "tuned"}, 0, 1),
        ({}, 0, 0),
    ],
)
def test_a_headline_compares_what_one_head_reads(asked, host, head, pair, sums, tmp_path):
    """The best cell's change and the gap between the models, both under the head that it names."""
    swap(pair, sums, segments="3", output_dir=tmp_path / "run", **asked)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    module, name = ("base_head", "tuned_head")[head], NAMES[host]
    nll = {each["body"]: each["nll"]["value"] for each in summary["references"] if each["head"] == module}
    gap = nll[NAMES[1 - host]] - nll[name]
    within = [each["nll"] for each in summary["cells"] if (each["host"], each["head"]) == (name, module)]
    best = max(within, key=lambda each: each["change"] * gap)
    said = summary["headline"]
    assert f"read by {NAMES[head]}'s head, the models differ by {gap:+.3f}" in said
    assert "None of" in said or f"by {best['change']:+.3f} nats per token" in said


def test_an_embedding_that_did_not_change_is_no_cell(taught, tokenizer, sums):
    tuned = copy.deepcopy(taught[1])
    tuned.model.embed_tokens.load_state_dict(taught[0].model.embed_tokens.state_dict())
    table = swap(Pair.of_models(taught[0], {"sft": tuned}, tokenizer), sums, segments="3")
    assert sorted(set(table.frame.layer)) == [0, 1, 2, 3]


def test_equal_models_change_nothing(taught, tokenizer, sums, tmp_path):
    pair = Pair.of_models(taught[0], {"same": copy.deepcopy(taught[0])}, tokenizer)
    table = swap(pair, sums, output_dir=tmp_path / "run", segments="3").frame
    changes = table[table.metric.str.endswith("_change")]
    assert len(changes) == 2 * 2 * 3 * 2
    assert (changes[["value", "low", "high"]] == 0).all(axis=None)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {shape["verdict"] for shape in summary["shape"]} <= {"inverted U", "U", "rising", "falling", "undecided"}


def test_a_resized_vocabulary_is_swapped_over_the_shared_tokens(taught, tokenizer, sums):
    more = copy.deepcopy(taught[1])
    more.resize_token_embeddings(310, mean_resizing=False)
    with torch.no_grad():
        more.lm_head.weight[300:] = 100.0
    same, resized = (
        swap(Pair.of_models(taught[0], {"sft": tuned}, tokenizer), sums, segments="3") for tuned in (taught[1], more)
    )
    pd.testing.assert_frame_equal(same.frame, resized.frame, check_exact=False, rtol=0, atol=1e-6)
    pair = Pair.of_models(taught[0], {"sft": more}, tokenizer)
    with pytest.raises(
        MidblockError, match=r"lm_head\.weight is \[300, 32\] in one model and \[310, 32\] in the other"
    ):
        swap(pair, sums, progress=Never(), **SMALL, generate=True)


class Never:
    def phase(self, title, total):
        assert title != "swapping"
        return lambda amount: None


def test_what_cannot_be_swapped_is_told(pair, pico, tuned_from, tokenizer, sums):
    base = pico("llama")
    wide = Pair.of_models(base, {"wide": pico("llama", intermediate_size=64)}, tokenizer)
    with pytest.raises(
        MidblockError, match=r"^model\.layers\.0\.mlp\.gate_proj\.weight is \[48, 32\] in one model and"
    ):
        swap(wide, sums, segments="3", progress=Never())
    with pytest.raises(MidblockError, match=r"^a swap takes one tuned model, not 2 \(swap them one by one\)"):
        swap(Pair.of_models(base, {"a": base, "b": base}, tokenizer), sums)
    with pytest.raises(MidblockError, match=r"^5 segments; the model has 3 blocks \(1 to 3, or each\)"):
        swap(pair, "no such data")
    with pytest.raises(MidblockError, match=r"^unknown option 'segment' \(did you mean 'segments'"):
        swap(pair, sums, segment="3")
    with pytest.raises(MidblockError, match=r"unknown reader 'last_numbre' \(did you mean 'last_number'"):
        swap(pair, sums, reader="last_numbre", progress=Never(), **SMALL, generate=True)


def test_a_likelihood_that_is_no_number(taught, tokenizer, sums):
    broken = copy.deepcopy(taught[1])
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight[3, 5] = torch.nan
    pair = Pair.of_models(taught[0], {"sft": broken}, tokenizer)
    with pytest.raises(MidblockError, match=r"^sft: the likelihood read off layer 2 is not finite \(first in prompt"):
        swap(pair, sums, segments="3")
