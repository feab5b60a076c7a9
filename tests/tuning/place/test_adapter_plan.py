"""From a plan to exact weights: on every family, and what a user can get wrong."""

import pytest
import torch
import transformers
from torch import nn

from midblock.base import LayerPlan, MidblockError
from midblock.checkpoints import Anatomy, Projection
from midblock.tuning.place.adapter_plan import Target, find_projections, place_adapters
from midblock.tuning.place.parts import select_roles
from midblock.tuning.settings import Placement

MIDDLE = LayerPlan.parse("010", 3)
MIXTURES = ("mixtral", "olmoe", "qwen3_moe")


def placed(model, plan=MIDDLE, **options):
    return place_adapters(model, plan, Placement(**{"lora_r": 4, **options}))


def test_every_weight_of_the_block_is_found(family, pico):
    model = pico(family)
    found = placed(model, target_modules="all")
    names = {target.name for target in found.targets}
    block = Anatomy.of(model).names["blocks"] + ".1."
    matrices = {
        name.removesuffix(".weight")
        for name, value in model.named_parameters()
        if name.startswith(block) and value.ndim >= 2 and not name.endswith("gate.weight")
    }
    assert names == matrices
    assert {target.block for target in found.targets} == {1}
    assert len(names) == len(found.targets) >= 4


def test_shapes_are_out_by_in_however_stored(family, pico):
    model = pico(family)
    for target in placed(model, target_modules="all").targets:
        if target.by_parameter:
            assert tuple(model.get_parameter(target.name).shape) == target.shape
            continue
        module = model.get_submodule(target.name)
        assert isinstance(module, nn.Linear) != target.transposed
        seen = module(torch.zeros(1, target.shape[1]))
        assert tuple(seen.shape) == (1, target.shape[0])
        stored = tuple(module.weight.shape)
        assert stored == (target.shape[::-1] if target.transposed else target.shape)


def test_attention_and_mlp_make_all(family, pico):
    model = pico(family)
    attention, mlp, both = (placed(model, target_modules=asked) for asked in ("attention", "mlp", "all"))
    assert placed(model) == attention
    assert set(attention.targets) | set(mlp.targets) == set(both.targets)
    assert not set(attention.targets) & set(mlp.targets)
    assert both.by_part() == {"attention": attention.parameters, "mlp": mlp.parameters}
    assert both.parameters == attention.parameters + mlp.parameters


def test_parameters_in_closed_form(pico):
    found = placed(pico("llama"), target_modules="all")
    attention = 4 * (2 * (32 + 32) + 2 * (16 + 32))
    assert found.by_part() == {"attention": attention, "mlp": 4 * 3 * (32 + 48)}
    experts = placed(pico("mixtral"), target_modules="mlp")
    assert experts.parameters == 4 * 4 * ((96 + 32) + (32 + 48))
    dora = placed(pico("llama"), use_dora=True)
    assert dora.parameters == attention + 32 + 16 + 16 + 32


def test_roles_with_commas(pico):
    names = [target.name for target in placed(pico("llama"), target_modules="q_proj, v_proj").targets]
    assert names == ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]
    mixed = placed(pico("llama"), target_modules="attention,down_proj")
    assert {target.role for target in mixed.targets} == {"q_proj", "k_proj", "v_proj", "o_proj", "down_proj"}


def test_the_rank_of_each_segment(pico):
    found = placed(pico("llama"), LayerPlan.parse("8,0,3", 3))
    assert found.plan == LayerPlan(3, (0, 2), (8, 3))
    assert {target.block: target.rank for target in found.targets} == {0: 8, 2: 3}
    assert {(target.rank, target.alpha) for target in found.targets} == {(8, 16.0), (3, 6.0)}
    assert {found.scale(target, False) for target in found.targets} == {2.0}


def test_the_published_alpha_scales_less_at_higher_ranks(pico):
    found = placed(pico("llama"), LayerPlan.parse("8,0,4", 3), lora_alpha=16)
    assert {target.block: found.scale(target, False) for target in found.targets} == {0: 2.0, 2: 4.0}
    assert {target.block: found.scale(target, True) for target in found.targets} == {0: 16 / 8**0.5, 2: 8.0}


@pytest.mark.parametrize("asked", ["attention", "mlp", "all", "q_proj"])
@pytest.mark.parametrize("dora", [False, True])
def test_as_many_parameters_as_another_plan(pico, asked, dora):
    model = pico("llama")
    one = placed(model, target_modules=asked, use_dora=dora, match_parameters="all:2")
    everywhere = placed(model, LayerPlan.parse("all", 3), lora_r=2, target_modules=asked, use_dora=dora)
    assert abs(one.parameters - everywhere.parameters) <= sum(target.projection.per_rank for target in one.targets) / 2
    if not dora:
        assert one.parameters == everywhere.parameters
        assert one.plan.ranks == (6,)


def test_matching_where_it_does_not_divide(pico):
    found = placed(pico("llama"), LayerPlan.parse("110", 3), match_parameters="all:3")
    assert found.plan.ranks == (5, 4)
    assert found.parameters == placed(pico("llama"), LayerPlan.parse("all", 3), lora_r=3).parameters


def test_a_rank_no_weight_can_have(pico):
    assert placed(pico("llama"), lora_r=16).parameters
    what = r"rank 17 is larger than model.layers.1.self_attn.k_proj allows, which is \[16, 32\]"
    with pytest.raises(MidblockError, match=what):
        placed(pico("llama"), lora_r=17)
    with pytest.raises(MidblockError, match=r"rank 33 .*layers.1.mlp.experts.gate_up_proj .*\[4, 96, 32\]"):
        placed(pico("mixtral"), lora_r=33, target_modules="mlp")


@pytest.mark.parametrize(
    ("family", "role", "holder"),
    [
        ("gpt2", "q_proj", "qkv"),
        ("phi3", "v_proj", "qkv"),
        ("phi3", "up_proj", "gate_up"),
        ("mixtral", "gate_proj", "gate_up"),
    ],
)
def test_a_role_inside_a_fused_weight(pico, family, role, holder):
    with pytest.raises(MidblockError, match=rf"{role} is fused into {holder} in this model \(ask for {holder}\)"):
        placed(pico(family), target_modules=role)
    assert {target.role for target in placed(pico(family), target_modules=holder).targets} == {holder}


def test_an_unknown_role_names_those_there_are(pico):
    with pytest.raises(MidblockError, match=r"unknown target module 'q_prj' \(did you mean 'q_proj'\?\)"):
        placed(pico("llama"), target_modules="q_prj")
    with pytest.raises(MidblockError, match=r"one of: all, attention, down_proj, experts, mlp, o_proj, qkv, up_proj"):
        placed(pico("gpt2"), target_modules="xyz")


def test_routers_only_when_asked_for(pico):
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.Qwen2MoeConfig(
            vocab_size=300, hidden_size=32, intermediate_size=48, moe_intermediate_size=24, num_hidden_layers=2,
            shared_expert_intermediate_size=40, num_attention_heads=4, num_key_value_heads=2, num_experts=4,
        )
    )  # fmt: skip
    found = placed(model, LayerPlan.parse("01", 2), target_modules="all")
    assert {target.projection.part for target in found.targets} == {"attention", "mlp"}
    names = {target.name.removeprefix("model.layers.1.mlp.") for target in found.targets}
    assert "shared_expert.gate_proj" in names
    assert "experts.gate_up_proj" in names
    assert "shared_expert_gate" not in names
    gate = placed(model, LayerPlan.parse("01", 2), target_modules="mlp.shared_expert_gate", lora_r=1)
    assert gate.by_part() == {"router": 33}


def test_experts_alone(pico):
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.Qwen2MoeConfig(
            vocab_size=300, hidden_size=32, intermediate_size=48, moe_intermediate_size=24, num_hidden_layers=2,
            shared_expert_intermediate_size=40, num_attention_heads=4, num_key_value_heads=2, num_experts=4,
        )
    )  # fmt: skip
    found = placed(model, LayerPlan.parse("01", 2), target_modules="experts")
    assert [target.name for target in found.targets] == [
        f"model.layers.1.mlp.experts.{name}" for name in ("gate_up_proj", "down_proj")
    ]
    both = placed(model, LayerPlan.parse("01", 2), target_modules="experts,q_proj")
    assert len(both.targets) == 3
    with pytest.raises(MidblockError, match=r"target_modules 'experts' matches no projection here \(there are: "):
        placed(pico("llama"), target_modules="experts")


def test_experts_stored_transposed():
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.GptOssConfig(
            vocab_size=300, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, num_local_experts=4,
        )
    )  # fmt: skip
    found = placed(model, LayerPlan.parse("01", 2), target_modules="mlp")
    shapes = {target.name.rpartition(".")[2]: (target.shape, target.transposed) for target in found.targets}
    assert shapes == {"gate_up_proj": ((4, 48, 32), True), "down_proj": ((4, 32, 24), True)}


def test_a_chosen_block_with_nothing_of_it(pico):
    model = pico("llama")
    model.model.layers[1].self_attn = nn.Identity()
    found = placed(model, LayerPlan.parse("all", 3))
    assert found.plan.blocks == (0, 2)
    assert {target.block for target in found.targets} == {0, 2}
    ranked = placed(model, LayerPlan.parse("4,8,2", 3)).plan
    assert (ranked.blocks, ranked.ranks) == ((0, 2), (4, 2))
    with pytest.raises(MidblockError, match=r"'attention' matches nothing in the chosen blocks \(there are: "):
        placed(model, LayerPlan.parse("010", 3))


def test_a_plan_for_another_depth(pico):
    with pytest.raises(MidblockError, match="for 16 blocks, the model has 3"):
        placed(pico("llama"), LayerPlan.parse("01100", 16))


def test_an_empty_group():
    with pytest.raises(MidblockError, match=r"'mlp' matches no projection here \(there are: qkv\)"):
        select_roles("mlp", {"qkv": "attention"})


def test_every_family_has_only_roles_with_a_name(family, pico):
    found = find_projections(pico(family))
    roles = {projection.role for projection in found}
    assert "other" not in {projection.part for projection in found}
    assert {"o_proj", "down_proj"} < roles
    experts = {len(found.shape) for found in find_projections(pico(family))} == {2, 3}
    assert experts == (family in MIXTURES)


def test_a_target_counts_its_experts():
    experts, one = (Projection("a", 0, "down_proj", "mlp", shape, block=0) for shape in ((4, 5, 7), (5, 7)))
    assert Target(experts, 3, 6.0).parameters == 4 * 3 * (5 + 7)
    assert Target(one, 3, 6.0, dora=True).parameters == 3 * (5 + 7) + 5
