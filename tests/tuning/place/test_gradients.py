"""Gradients by place, and the checks that every planned module learns and nothing else does."""

import pytest
import torch
from torch import nn

from midblock.base import LayerPlan, MidblockError
from midblock.checkpoints import Anatomy
from midblock.checkpoints.places import located
from midblock.tuning.place.adapter_plan import place_adapters
from midblock.tuning.place.adapters import attach
from midblock.tuning.place.gradients import Gradients, plain_name
from midblock.tuning.place.weights import choose_weights, train_only
from midblock.tuning.settings import Placement

IDS = torch.tensor([[5, 9, 120, 33, 7, 250, 41, 8, 99, 17]])
MIDDLE = LayerPlan.parse("010", 3)


def with_adapters(base, plan=MIDDLE, **options):
    settings = Placement(**{"lora_r": 4, "target_modules": "all", **options})
    base.requires_grad_(False)
    return attach(base, place_adapters(base, plan, settings), settings, seed=0)


def in_full(model, plan=MIDDLE, **options):
    train_only(model, choose_weights(model, plan, Placement(method="full", **options)))
    return model


def backward(model):
    model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    return Gradients(model, Anatomy.of(causal).projection_of)


@pytest.mark.parametrize("make", [with_adapters, in_full])
def test_squares_are_torchs_norms(family, pico, make):
    gradients = backward(make(pico(family)))
    squares = gradients.squares()
    trained = {name: value for name, value in gradients.model.named_parameters() if value.requires_grad}
    assert squares.keys() == trained.keys()
    for name, value in trained.items():
        assert squares[name] == pytest.approx(value.grad.double().square().sum().item(), rel=1e-5, abs=1e-20)
    total = nn.utils.get_total_norm([value.grad for value in trained.values()])
    assert sum(squares.values()) ** 0.5 == pytest.approx(total.item(), rel=1e-5)
    gradients.check_first(squares)


def test_norms_of_16_bit_gradients_are_not_rounded_to_16_bits():
    model = nn.Linear(999, 1, bias=False, dtype=torch.bfloat16)
    model.weight.grad = torch.full_like(model.weight, 0.1)
    exact = model.weight.grad.double().square().sum().item()
    assert Gradients(model, lambda name: located(name, (), {"blocks": "-"}, 1)).squares()["weight"] == pytest.approx(
        exact, rel=1e-5
    )
    assert float(model.weight.grad.norm()) ** 2 != pytest.approx(exact, rel=1e-5)


def test_norms_by_place_add_up_in_squares(family, pico):
    model = in_full(pico(family), LayerPlan.parse("0-1", 3), also=("embedding", "final_norm"))
    gradients = backward(model)
    squares = gradients.squares()
    places = gradients.by_place(squares)
    assert {layer for layer, _ in places} == {-1, 0, 1, 3}
    assert {"attention", "mlp"} <= {part for layer, part in places if layer == 0}
    for layer in (-1, 0, 1, 3):
        parts = sum(norm**2 for (at, part), norm in places.items() if at == layer and part != "block")
        assert places[layer, "block"] ** 2 == pytest.approx(parts)
    whole = sum(norm**2 for (_, part), norm in places.items() if part == "block")
    assert whole == pytest.approx(sum(squares.values()))


def test_norms_by_place_by_hand(pico):
    model = in_full(pico("llama"))
    gradients = backward(model)
    places = gradients.by_place(gradients.squares())
    block = model.model.layers[1]
    for part, module in (("attention", block.self_attn), ("mlp", block.mlp), ("block", block)):
        flat = torch.cat([value.grad.flatten() for value in module.parameters()])
        assert places[1, part] == pytest.approx(flat.norm().item(), rel=1e-5)
    assert set(places) == {(1, "attention"), (1, "mlp"), (1, "norm"), (1, "block")}


def test_adapters_count_where_their_module_sits(pico):
    gradients = backward(with_adapters(pico("llama"), target_modules="q_proj,down_proj"))
    assert set(gradients.places.values()) == {(1, "attention"), (1, "mlp")}


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"),
        ("module.model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"),
        ("_orig_mod.model.layers.1.mlp.up_proj.bias", "model.layers.1.mlp.up_proj.bias"),
        ("base_model.model.model.layers.1.mlp.up_proj.base_layer.weight", "model.layers.1.mlp.up_proj.weight"),
        ("base_model.model.model.layers.1.mlp.up_proj.lora_A.default.weight", "model.layers.1.mlp.up_proj.weight"),
        ("module.base_model.model.lm_head.lora_B.default.weight", "lm_head.weight"),
        ("module._orig_mod.base_model.model.lm_head.weight", "lm_head.weight"),
        ("base_model.model.h.0.attn.c_attn.lora_magnitude_vector.default.weight", "h.0.attn.c_attn.weight"),
        ("base_model.model.layers.0.mlp.experts.base_layer.lora_A.default.weight", "layers.0.mlp.experts.weight"),
    ],
)
def test_plain_names(name, plain):
    assert plain_name(name) == plain


def test_plain_names_of_real_wrappers_are_the_models_own(family, pico):
    base = pico(family)
    own = {name for name, _ in base.named_parameters()}
    model = with_adapters(base)
    assert {plain_name(name) for name, _ in model.named_parameters() if ".lora_" not in name} == own
    adapted = {plain_name(name).removesuffix(".weight") for name, _ in model.named_parameters() if ".lora_" in name}
    assert all(any(name.startswith(target) for name in own) for target in adapted)


def test_plain_names_under_ddp_and_compile(pico, tmp_path):
    model = with_adapters(pico("llama"))
    expected = [plain_name(name) for name, _ in model.named_parameters()]
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        assert [plain_name(name) for name, _ in wrapped.named_parameters()] == expected
    finally:
        torch.distributed.destroy_process_group()
    compiled = torch.compile(model)
    assert [plain_name(name) for name, _ in compiled.named_parameters()] == expected


def test_a_parameter_that_was_never_reached_is_named(pico):
    model = in_full(pico("llama"))
    model.model.layers[1].self_attn.spare = nn.Linear(4, 4, bias=False)
    with pytest.raises(
        MidblockError, match=r"^model\.layers\.1\.self_attn\.spare\.weight is to be trained but gets no"
    ):
        backward(model).squares()


def test_a_whole_module_that_nothing_reaches_is_named(pico):
    """A zeroed output projection lets no gradient through to the values, keys and queries."""
    model = in_full(pico("llama"), target_modules="q_proj")
    nn.init.zeros_(model.model.layers[1].self_attn.o_proj.weight)
    gradients = backward(model)
    with pytest.raises(MidblockError, match=r"^model\.layers\.1\.self_attn\.q_proj is to be trained .* exactly zero"):
        gradients.check_first(gradients.squares())


def test_an_adapter_that_nothing_reaches_is_named(pico):
    base = pico("llama")
    nn.init.zeros_(base.model.layers[1].mlp.down_proj.weight)
    model = with_adapters(base, target_modules="gate_proj")
    gradients = backward(model)
    with pytest.raises(MidblockError, match=r"^model\.layers\.1\.mlp\.gate_proj is to be trained .* exactly zero"):
        gradients.check_first(gradients.squares())


def test_the_gradient_of_a_is_zero_at_first_and_that_is_no_failure(pico):
    gradients = backward(with_adapters(pico("llama")))
    squares = gradients.squares()
    assert all(squares[name] == 0 for name in squares if ".lora_A." in name)
    assert all(squares[name] > 0 for name in squares if ".lora_B." in name)
    gradients.check_first(squares)


def test_a_gradient_in_a_alone_does_not_hide_a_dead_b(pico):
    gradients = backward(with_adapters(pico("llama"), target_modules="q_proj"))
    squares = {name: float(".lora_A." in name) for name in gradients.squares()}
    with pytest.raises(MidblockError, match=r"self_attn\.q_proj is to be trained .* exactly zero"):
        gradients.check_first(squares)


def test_a_stray_gradient_is_named(pico):
    model = in_full(pico("llama"))
    model.model.layers[2].mlp.up_proj.weight.requires_grad_(True)
    backward(model)
    model.model.layers[2].mlp.up_proj.weight.requires_grad_(False)
    gradients = Gradients(model, Anatomy.of(model).projection_of)
    with pytest.raises(MidblockError, match=r"the frozen tensor model\.layers\.2\.mlp\.up_proj\.weight got a gradient"):
        gradients.check_first(gradients.squares())


def one_step(model, learning_rate):
    gradients = backward(model)
    torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=learning_rate).step()
    return gradients


def test_adapters_that_did_not_move_are_named(family, pico):
    model = with_adapters(pico(family))
    with pytest.raises(MidblockError, match="did not move in the first step"):
        one_step(model, 0.0).check_moved()
    one_step(model, 1e-3).check_moved()


def test_one_adapter_that_stays_is_found_among_many(pico):
    model = with_adapters(pico("llama"))
    gradients = one_step(model, 1e-3)
    nn.init.zeros_(model.get_base_model().model.layers[1].mlp.up_proj.lora_B["default"].weight)
    with pytest.raises(MidblockError, match=r"the adapter of model\.layers\.1\.mlp\.up_proj\.weight did not move"):
        gradients.check_moved()


def test_full_tuning_has_no_adapters_to_look_at(pico):
    one_step(in_full(pico("llama")), 0.0).check_moved()
