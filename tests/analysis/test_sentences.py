"""What the headline says of models that differ in one part alone, and of models that do not differ."""

import copy
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from midblock.analysis import analyze, summarize
from midblock.analysis.differences import Differences
from midblock.base import LayerRow, LayerTable
from midblock.checkpoints import load_pair
from midblock.report.story import clause

SMALL = {"num_samples": 8, "num_token_samples": 4}
DENIALS = re.compile("does not differ|no difference")


@pytest.fixture
def tuned(tmp_path, pico, tokenizer):
    """Save a base and a copy in which some parameters moved; give both folders and the relative change of those."""

    def make(*parts, family="llama", amount=0.5, dtype=torch.float32):
        base = pico(family).to(dtype)
        other, generator = copy.deepcopy(base), torch.Generator().manual_seed(3)
        relative = {}
        for name, parameter in other.named_parameters():
            if any(part in name for part in parts):
                before = parameter.data.double()
                step = torch.randn(parameter.shape, generator=generator).to(dtype) * max(parameter.std().item(), 0.1)
                parameter.data += amount * step
                relative[name] = float((parameter.data.double() - before).norm() / before.norm())
        for model, name in ((base, "base"), (other, "tuned")):
            model.save_pretrained(tmp_path / name)
            tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / "base"), str(tmp_path / "tuned"), relative

    return make


def headline(tmp_path, base, tuned, data="builtin:chain_sum", **options):
    run = tmp_path / "run"
    analyze(load_pair(base, tuned), data, output_dir=str(run), overwrite=True, **{**SMALL, **options})
    return json.loads((run / "summary.json").read_text())["headline"]


@pytest.mark.parametrize(
    ("part", "said", "seen"),
    [
        ("embed_tokens", "embedding", "states differ by [0-9.]+ at the embedding"),
        ("lm_head", "head", r"no state measured on these prompts differs, predictions do \(logit-lens KL"),
        ("model.norm.", "final norm", r"states differ by [0-9.]+ at the final norm \(of"),
    ],
)
def test_what_alone_was_tuned_outside_the_blocks_is_named(tmp_path, tuned, part, said, seen):
    base, other, relative = tuned(part)
    (amount,) = relative.values()
    for text in (headline(tmp_path, base, other, weights_only=True), headline(tmp_path, base, other)):
        assert not DENIALS.search(text)
        assert f"No block's weights moved in tuned, those outside did: {said} (delta_rel {amount:.3g})" in text
        assert not re.search(r"block \d", clause(text))
    assert re.search(seen, text)


def test_embedding_rows_that_no_prompt_uses(tmp_path, tuned, tokenizer):
    base, other, _ = tuned()
    weights = load_file(f"{other}/model.safetensors")
    unused = tokenizer.convert_tokens_to_ids(["<pad>", "<eos>"])
    before = weights["model.embed_tokens.weight"].double().clone()
    weights["model.embed_tokens.weight"][unused] += 1
    relative = float((weights["model.embed_tokens.weight"].double() - before).norm() / before.norm())
    save_file(weights, f"{other}/model.safetensors", metadata={"format": "pt"})
    text = headline(tmp_path, base, other)
    assert f"embedding (delta_rel {relative:.3g}, {100 * 2 / 300:.2g} % of its values differ)" in text
    assert text.endswith("no state measured on these prompts differs.")
    text = headline(tmp_path, base, other, weights=False)
    assert text == "tuned shows no difference from the base on these prompts; its weights were not compared."


def test_norms_in_the_blocks_alone(tmp_path, tuned):
    base, other, _ = tuned("layernorm")
    assert "tuned's weights moved (in norms alone)" in headline(tmp_path, base, other, weights_only=True)
    assert "its weights moved (in norms alone)" in headline(tmp_path, base, other)


def test_biases_in_the_blocks_alone(tmp_path, tuned):
    base, other, _ = tuned("c_attn.bias", "c_proj.bias", family="gpt2")
    assert "weights moved (in biases alone)" in headline(tmp_path, base, other, weights_only=True)


def test_a_change_of_few_values_is_said_as_such(tmp_path, tuned):
    base, other, _ = tuned(dtype=torch.bfloat16)
    weights = load_file(f"{other}/model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name][0, :7] *= 1.25
    save_file(weights, f"{other}/model.safetensors", metadata={"format": "pt"})
    count = sum(value.numel() for key, value in weights.items() if key.startswith("model.layers.1."))
    text = headline(tmp_path, base, other, weights_only=True)
    assert f"most in block 1 ({100 * 7 / count:.2g} % of the values differ)" in text


def test_a_model_of_which_all_moved_is_read_as_before(tmp_path, tuned):
    base, other, _ = tuned("weight", amount=0.1)
    assert re.fullmatch(
        r"tuned's tuning acts [^;]*(, most of all in block \d)?; its weights moved [^;(]*( \(\d+ %\))?, "
        r"most in block \d(; its states carry most change across block \d)?\.( Prompts are too few for intervals\.)?",
        headline(tmp_path, base, other),
    )


def test_equal_checkpoints_are_called_equal(tmp_path, tuned):
    base, other, _ = tuned()
    assert headline(tmp_path, base, other) == "tuned does not differ from the base."
    only = headline(tmp_path, base, other, weights_only=True)
    assert only == "tuned does not differ from the base in any weight that was compared."
    part = headline(tmp_path, base, other, layers="0-1")
    assert part == "tuned does not differ from the base in any weight or state that was compared."


def test_what_was_not_compared_is_not_called_equal(tmp_path, tuned):
    base, other, _ = tuned()
    weights = load_file(f"{other}/model.safetensors")
    weights["model.layers.0.extra.weight"] = torch.ones(3)
    save_file(weights, f"{other}/model.safetensors", metadata={"format": "pt"})
    assert headline(tmp_path, base, other, weights_only=True).endswith("in any weight that was compared.")


def rows(metric, values, module="residual", model="sft", start=0):
    return [LayerRow(model, start + i, 3, metric, float(v), 10, module=module) for i, v in enumerate(values)]


def said(*groups):
    return summarize(LayerTable.from_rows([row for group in groups for row in group]))["headline"]


def test_blocks_that_moved_where_no_prompt_shows_it():
    weights = rows("delta_rel", [0, 0.2, 0], "block")
    states = rows("change_increment", [0, 0, 0, 0], start=-1)
    assert said(weights, states) == (
        "sft's weights moved most in the middle third (100 %), most in block 1, "
        "yet no state measured on these prompts differs."
    )


def test_weights_that_started_at_zero_moved():
    """Their relative change is not defined, and is no reason to deny it."""
    weights = rows("delta_rel", [float("nan")] * 3, "block") + rows("delta_fro", [1.0] * 3, "block")
    assert said(weights) == "sft's weights moved."


def test_states_that_differ_where_no_compared_weight_does():
    weights = rows("delta_rel", [0, 0, 0], "block")
    change = rows("change_intensity_relative", [0, 0.25, 0.5]) + rows("change_increment", [0, 0.25, 0.25])
    assert said(weights, change) == (
        "sft's states differ by 0.25 after block 1 and by 0.5 after block 2 (of the base's norm), "
        "though no weight that was compared moved."
    )


def test_a_head_alone_where_weights_were_not_compared():
    states, kl = rows("change_increment", [0, 0, 0]), rows("logit_kl", [0.1, 0.2, 0.125])
    assert said(states, kl) == (
        "sft's predictions differ (logit-lens KL of up to 0.2 nats), though no state measured on these prompts does; "
        "its weights were not compared."
    )


def test_several_models_say_what_moved_of_each():
    head = rows("delta_rel", [0, 0, 0], "block", "a") + rows("delta_rel", [0.5], "head", "a", start=3)
    same, block = rows("delta_rel", [0, 0, 0], "block", "b"), rows("delta_rel", [0, 0, 1], "block", "c")
    assert said(head, same, block) == (
        "Where the change gathers: a outside the blocks (head); b nowhere; c most in the upper third (100 %)."
    )


def test_what_differs_is_read_off_the_table():
    block = rows("changed_fraction", [0, 0.5, 0.25], "block") + rows("changed_fraction", [0, 0.5, 0.25], "q_proj")
    found = Differences.of(LayerTable.from_rows(block), "sft")
    assert (found.weights, found.states, found.divergence) == (True, False, None)
    assert found.roles == {"q_proj"}
    assert found.share == pytest.approx(0.375)
    assert found.anywhere
