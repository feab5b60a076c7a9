"""Which weights full tuning trains, on every family; counts against the model's own."""

import pytest
import torch
import transformers

from midblock.base import LayerPlan, MidblockError
from midblock.checkpoints import Anatomy
from midblock.tuning.place.weights import (
    TIED,
    by_part,
    choose_weights,
    frozen_by_the_model,
    parameter_parts,
    train_only,
)
from midblock.tuning.settings import OUTSIDE, Placement

IDS = torch.tensor([[5, 9, 120, 33, 7, 250, 41, 8, 99, 17]])
MIDDLE = LayerPlan.parse("010", 3)
ALL = LayerPlan.parse("all", 3)


def chosen(model, plan=MIDDLE, **options):
    return choose_weights(model, plan, Placement(method="full", **options))


def names_of(model, module):
    inside = {id(value) for value in module.parameters()}
    return {name for name, value in model.named_parameters() if id(value) in inside}


def test_every_weight_of_the_block_and_nothing_else(family, pico):
    model = pico(family)
    found = chosen(model)
    assert set(found) == names_of(model, Anatomy.of(model).blocks[1])
    assert {"attention", "mlp", "norm"} <= set(found.values()) <= {"attention", "mlp", "norm", "bias", "router"}


def test_all_blocks_and_all_parts_are_the_whole_model(family, pico):
    model = pico(family)
    found = chosen(model, ALL, also=OUTSIDE)
    assert list(found) == [name for name, _ in model.named_parameters()]
    assert sum(by_part(model, found).values()) == sum(value.numel() for value in model.parameters())
    assert found == parameter_parts(model)


def test_only_the_chosen_get_a_gradient(family, pico):
    model = pico(family).train()
    found = chosen(model, also=("final_norm",))
    train_only(model, found)
    model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    assert {name for name, value in model.named_parameters() if value.requires_grad} == set(found)
    assert {name for name, value in model.named_parameters() if value.grad is not None} == set(found)
    # a key bias shifts all of a query's scores alike, and so has no gradient
    dead = {name for name, value in model.named_parameters() if value.grad is not None and not value.grad.any()}
    assert {found[name] for name in dead} <= {"bias"}


def test_training_again_freezes_what_was_trained_before(pico):
    model = pico("llama")
    train_only(model, chosen(model, ALL))
    train_only(model, ["lm_head.weight"])
    assert [name for name, value in model.named_parameters() if value.requires_grad] == ["lm_head.weight"]


def test_counts_in_closed_form(pico):
    model = pico("qwen2", tie_word_embeddings=False)
    assert by_part(model, chosen(model, also=OUTSIDE)) == {
        "embedding": 300 * 32,
        "attention": 2 * 32 * 32 + 2 * 16 * 32,
        "bias": 32 + 16 + 16,
        "mlp": 3 * 48 * 32,
        "norm": 32 * (2 * 3 + 1),
        "head": 300 * 32,
    }


@pytest.mark.parametrize("asked", [("embedding",), ("head",), ("head", "embedding")], ids="+".join)
def test_a_tied_head_is_trained_once_by_either_name(pico, asked):
    model = pico("llama_tied")
    found = chosen(model, also=asked)
    assert found["model.embed_tokens.weight"] == TIED
    assert by_part(model, found)[TIED] == 300 * 32
    assert not {"embedding", "head"} & set(found.values())
    train_only(model, found)
    assert Anatomy.of(model).head.weight.requires_grad


@pytest.mark.parametrize("part", ["embedding", "head", "final_norm"])
def test_parts_outside_the_blocks(family, pico, part):
    model = pico(family)
    anatomy = Anatomy.of(model)
    module = getattr(anatomy, part)
    extra = set(chosen(model, also=(part,))) - set(chosen(model))
    assert names_of(model, module) <= extra
    positions = {name for name in extra if parameter_parts(model)[name] == "position_embedding"}
    assert extra - positions == names_of(model, module)
    assert bool(positions) == (part == "embedding" and family in ("gpt2", "opt"))


def test_norms_everywhere(family, pico):
    model = pico(family)
    extra = set(chosen(model, also=("norms",))) - set(chosen(model))
    kinds = {type(model.get_submodule(name.rpartition(".")[0])).__name__ for name in extra}
    assert all("Norm" in kind for kind in kinds)
    norms = [module for module in model.modules() if "Norm" in type(module).__name__]
    every = {name for module in norms for name in names_of(model, module)}
    assert set(chosen(model, also=("norms",))) == every | set(chosen(model))


def test_roles_and_their_own_biases(pico):
    found = chosen(pico("gpt2"), target_modules="attention")
    block = "transformer.h.1.attn."
    assert found == {
        f"{block}c_attn.weight": "attention",
        f"{block}c_attn.bias": "bias",
        f"{block}c_proj.weight": "attention",
        f"{block}c_proj.bias": "bias",
    }
    assert set(chosen(pico("qwen2"), target_modules="q_proj")) == {
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.self_attn.q_proj.bias",
    }
    experts = chosen(pico("mixtral"), target_modules="mlp")
    assert list(experts) == [f"model.layers.1.mlp.experts.{role}" for role in ("gate_up_proj", "down_proj")]
    assert chosen(pico("mixtral"), target_modules="experts") == experts
    assert chosen(pico("mixtral"), target_modules="router") == {"model.layers.1.mlp.gate.weight": "router"}
    assert set(chosen(pico("llama"), target_modules="norm").values()) == {"norm"}


def test_what_a_user_can_get_wrong(pico):
    model = pico("llama")
    with pytest.raises(MidblockError, match="did you mean 'q_proj'"):
        chosen(model, target_modules="q_prj")
    with pytest.raises(MidblockError, match="fused into qkv"):
        chosen(pico("phi3"), target_modules="q_proj")
    with pytest.raises(MidblockError, match="gives ranks"):
        chosen(model, LayerPlan.parse("4,0,3", 3))
    with pytest.raises(MidblockError, match="for 16 blocks, the model has 3"):
        chosen(model, LayerPlan.parse("01100", 16))
    with pytest.raises(MidblockError, match=r"no parameter model.layers.9"):
        train_only(model, ["model.layers.9.mlp.up_proj.weight"])
    with pytest.raises(MidblockError, match="no weight is chosen"):
        train_only(model, [])


def test_a_block_without_the_role(pico):
    model = pico("llama")
    model.model.layers[1].self_attn = torch.nn.Identity()
    assert {name.split(".")[2] for name in chosen(model, ALL, target_modules="attention")} == {"0", "2"}
    with pytest.raises(MidblockError, match="'attention' matches nothing in the chosen blocks"):
        chosen(model, LayerPlan.parse("010", 3), target_modules="attention")


def test_what_an_architecture_never_trains_stays(pico):
    config = transformers.CONFIG_MAPPING["afmoe"](
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, num_dense_layers=1,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).requires_grad_(False)
    found = choose_weights(model, LayerPlan.parse("all", 2), Placement(method="full"))
    assert frozen_by_the_model(model) == {"model.layers.1.mlp.expert_bias"}
    inside = {name for name, _ in model.named_parameters() if ".layers." in name}
    assert set(found) == inside - {"model.layers.1.mlp.expert_bias"}


def test_quantised_weights_are_refused_and_nothing_is_changed(pico):
    model = pico("llama")
    name = "model.layers.1.mlp.up_proj.weight"
    packed = torch.nn.Parameter(torch.zeros(48, 32, dtype=torch.int8), requires_grad=False)
    model.get_submodule(name.removesuffix(".weight")).weight = packed
    with pytest.raises(MidblockError, match=rf"{name} is quantised \(torch.int8\)"):
        train_only(model, chosen(model))
    assert model.lm_head.weight.requires_grad
