"""The recipe: read back as mergekit reads it, every tensor takes the α that the merge gave it."""

import re

import pytest
import torch
import yaml

from midblock.base.depth_list import per_block
from midblock.checkpoints.places import located
from midblock.interventions.merge.mergekit import Rule, alpha_of, recipe, rules
from midblock.interventions.merge.settings import MergeSettings

BLOCKS = 7
IN_BLOCK = (
    "self_attn.q_proj.weight",
    "self_attn.q_proj.bias",
    "self_attn.o_proj.weight",
    "self_attn.q_norm.weight",
    "mlp.gate_proj.weight",
    "mlp.down_proj.weight",
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
)
NAMES = [
    "model.embed_tokens.weight",
    *[f"model.layers.{block}.{name}" for block in range(BLOCKS) for name in IN_BLOCK],
    "model.norm.weight",
    "lm_head.weight",
]


def at(name, blocks=BLOCKS):
    """A tensor as far as its name tells."""
    holder = re.match(r"(.*?)\.\d+\.", name)
    return located(name, (), {"blocks": holder[1] if holder else "-"}, blocks)


def weight_in_mergekit(setting, name, layer):
    """mergekit's evaluation of a setting: the first filter that is part of the name, then its gradient."""
    if isinstance(setting, list) and isinstance(setting[0], dict):
        setting = next(each["value"] for each in setting if each.get("filter", "") in name)
    values = setting if isinstance(setting, list) else [setting]
    t = layer / (BLOCKS - 1) if layer is not None else 0.0
    scaled = t * (len(values) - 1)
    low = int(scaled)
    high = min(len(values) - 1, low + 1)
    return (1 - (scaled - low)) * values[low] + (scaled - low) * values[high]


@pytest.mark.parametrize("interpolation", ["gradient", "segments"])
@pytest.mark.parametrize("modules", [(), ("mlp=1,0",), ("norm=0.25", "attention=0,1"), ("bias=1", "q_proj=0,0.5")])
def test_every_tensor_takes_its_alpha(modules, interpolation):
    numbers = (0.1, 0.9, 0.3)
    settings = MergeSettings(module_alphas=modules, interpolation=interpolation, head_alpha=0.75)
    alphas = settings.alphas(numbers, BLOCKS, tied=False)
    short = {None: numbers} if interpolation == "gradient" else {}
    content = yaml.safe_load(
        recipe(rules(alphas, [at(name) for name in NAMES], short, {}), "one/base", "tuned", torch.bfloat16)
    )
    assert content["merge_method"] == "linear"
    assert content["parameters"] == {"normalize": False}
    assert content["out_dtype"] == "bfloat16"
    first, second = content["models"]
    assert (first["model"], second["model"]) == ("one/base", "tuned")
    for name in NAMES:
        layer = int(name.split(".")[2]) if ".layers." in name else None
        found = [weight_in_mergekit(model["parameters"]["weight"], name, layer) for model in (first, second)]
        assert found == pytest.approx([1 - alphas.of(at(name)), alphas.of(at(name))], abs=1e-9), name


def test_short_filters_where_they_suffice():
    alphas = MergeSettings(module_alphas=("mlp=0,1",)).alphas((0.5,), BLOCKS, tied=False)
    given = {None: (0.5,), "mlp": (0.0, 1.0)}
    found = rules(alphas, [at(name) for name in NAMES], given, {})
    assert found[-2:] == [Rule(".mlp.", (0.0, 1.0)), Rule(None, (0.5,))]
    assert len(found) == 5


def test_mixtrals_experts_are_named_by_what_is_alike_on_disk_and_in_memory():
    names = [f"model.layers.0.{name}.weight" for name in ("block_sparse_moe.gate", "block_sparse_moe.experts.0.w1")]
    alphas = MergeSettings(module_alphas=("mlp=1",)).alphas((0.0,), 1, tied=False)
    assert [rule.filter for rule in rules(alphas, [at(name, 1) for name in names], {}, {})] == [".experts.", None]


def test_names_that_hold_one_another_get_a_rule_each():
    # "norm.weight", on its own, would also take every norm of the blocks
    names = [f"layers.{block}.norm.weight" for block in range(3)] + ["norm.weight"]
    alphas = MergeSettings(head_alpha=1.0).alphas((0.0, 0.5), 3, tied=False)
    tensors = [at(name, 3) for name in names]
    found = rules(alphas, tensors, {}, {})
    assert [alpha_of(found, where, 3) for where in tensors] == pytest.approx([0.0, 0.25, 0.5, 1.0])


def test_a_tied_head_takes_what_it_is_told():
    alphas = MergeSettings().alphas((0.0, 1.0), BLOCKS, tied=True)
    found = rules(alphas, [at(name) for name in NAMES], {}, {"lm_head.weight": 0.0})
    assert alpha_of(found, at("lm_head.weight"), BLOCKS) == 0.0
    assert alpha_of(found, at("model.norm.weight"), BLOCKS) == 1.0


def test_gradients_read_as_they_are_spread():
    numbers = (0.0, 0.7, 0.2, 1.0)
    read = [Rule(None, numbers).at(block, 30) for block in range(30)]
    assert read == pytest.approx(per_block(numbers, 30), abs=1e-12)


@pytest.mark.parametrize(
    "name",
    [
        "a\n---\nmodels: [evil]",
        "'\"\\ #: {x}",
        "!!python/object/apply:os.system ['x']",
        "*a",
        "\x85\u2028\u202e",
        "- a",
    ],
)
def test_a_models_name_stays_a_name(name):
    text = recipe([Rule(None, (0.5,))], name, name, torch.bfloat16)
    read = yaml.safe_load(text)
    assert read == {**yaml.safe_load(recipe([Rule(None, (0.5,))], "a", "b", torch.bfloat16)), "models": read["models"]}
    assert [model["model"] for model in read["models"]] == [name, name]
