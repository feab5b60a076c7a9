"""The adapters' anchor: its gradients against autograd through the full change, and PEFT's own idea of that change."""

import peft
import pytest
import torch
import transformers
from torch import nn

from midblock.base import MidblockError
from midblock.tuning.anchor.anchor import Anchor, autograd_penalty
from midblock.tuning.anchor.factors import factorize
from midblock.tuning.anchor.full import full_anchor
from midblock.tuning.anchor.lora import lora_anchor

SCOPES = ["block", "subspace"]
SHAPES = {"wide": (7, 12, 2), "tall": (15, 6, 5), "square": (9, 9, 3), "experts": (3, 8, 6, 2)}
K = 4
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def adapters(scope: str, dtype: torch.dtype = torch.float64, **options) -> tuple[dict, dict, Anchor]:
    """Pretrained weights, items and their anchor."""
    torch.manual_seed(0)
    weights, items = {}, {}
    for position, (name, (*experts, m, n, r)) in enumerate(SHAPES.items()):
        weights[name] = torch.randn(*experts, m, n, dtype=torch.float64)
        rank = r * (experts or [1])[0]
        A, B = (nn.Parameter(torch.randn(shape, dtype=torch.float64).to(dtype)) for shape in ((rank, n), (m, rank)))
        items[name] = (A, B, 0.5 + position, factorize(weights[name], K, seed=0, dtype=torch.float64))
    return weights, items, lora_anchor(items, 0.7, scope, **options)


def changed(weights: dict, items: dict) -> dict:
    return {name: weights[name] + change_of(A, B, scale, weights[name]) for name, (A, B, scale, _) in items.items()}


def change_of(A, B, scale, weight):
    """What PEFT adds: of a stack each expert's own B A, whose rows of A lie together and columns of B apart."""
    if weight.ndim == 2:
        return scale * B @ A
    E = len(weight)
    return torch.stack([scale * B[:, expert::E] @ A[expert * (len(A) // E) : (expert + 1) * (len(A) // E)]
                        for expert in range(E)])  # fmt: skip


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("scope", SCOPES)
def test_gradient_and_value_agree_with_autograd(scope, normalize):
    weights, items, anchor = adapters(scope, normalize=normalize)
    parameters = [parameter for item in items.values() for parameter in item[:2]]
    factors = {name: item[3] for name, item in items.items()}
    options = {"strength": 0.7, "scope": scope, "normalize": normalize, "origins": weights}
    penalty = autograd_penalty(changed(weights, items), factors, **options)
    expected = torch.autograd.grad(penalty, parameters)
    before = [torch.randn_like(parameter) for parameter in parameters]
    for parameter, gradient in zip(parameters, before, strict=True):
        parameter.grad = gradient.clone()
    torch.testing.assert_close(anchor.add_gradient(2.5), penalty.detach(), **CLOSE)
    for parameter, gradient, old in zip(parameters, expected, before, strict=True):
        torch.testing.assert_close(parameter.grad, old + 2.5 * gradient, **CLOSE)


@pytest.mark.parametrize("scope", SCOPES)
def test_gradient_agrees_with_finite_differences(scope):
    _, items, anchor = adapters(scope)
    anchor.add_gradient()
    for parameter in (parameter for item in items.values() for parameter in item[:2]):
        direction = torch.randn_like(parameter)
        ends = []
        for step in (1e-4, -2e-4):
            with torch.no_grad():
                parameter += step * direction
            ends.append(anchor.value())
        with torch.no_grad():
            parameter += 1e-4 * direction
        torch.testing.assert_close((ends[0] - ends[1]) / 2e-4, (parameter.grad * direction).sum(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scope", SCOPES)
def test_the_same_penalty_as_on_the_weight_they_make(scope):
    weights, items, anchor = adapters(scope)
    parameters = {name: nn.Parameter(weight.clone()) for name, weight in weights.items()}
    full = full_anchor({name: (parameters[name], items[name][3]) for name in items}, 0.7, scope)
    with torch.no_grad():
        for name, weight in changed(weights, items).items():
            parameters[name].copy_(weight)
    torch.testing.assert_close(anchor.value(), full.value(), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scope", SCOPES)
def test_exactly_zero_at_the_start(scope, dtype):
    _, items, anchor = adapters(scope, dtype)
    with torch.no_grad():
        for _, B, _, _ in items.values():
            B.zero_()
    assert anchor.add_gradient() == 0
    for A, B, _, _ in items.values():
        assert A.grad.dtype == dtype
        assert A.grad.abs().max() == B.grad.abs().max() == 0


@pytest.mark.parametrize("scope", SCOPES)
def test_another_split_of_the_same_change_has_the_same_value(scope):
    _, items, anchor = adapters(scope)
    before = anchor.value()
    with torch.no_grad():
        for A, B, _, _ in items.values():
            if "experts" in items and A is items["experts"][0]:
                continue  # only rows of one expert may be mixed
            mix = torch.randn(len(A), len(A), dtype=torch.float64) + 3 * torch.eye(len(A))
            A.copy_(mix @ A)
            B.copy_(B @ torch.linalg.inv(mix))
    torch.testing.assert_close(anchor.value(), before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("target", ["c_attn", "attn.c_proj"], ids=["wide", "square"])
def test_weights_stored_in_out_take_transposed_factors(pico, target):
    base = pico("gpt2").double()
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=[target], fan_in_fan_out=True)
    model = peft.get_peft_model(base, config)
    layer = next(module for module in model.modules() if isinstance(module, peft.tuners.lora.LoraLayer))
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    nn.init.normal_(B)
    stored = layer.base_layer.weight.detach()
    factors = factorize(stored, 4, seed=0, dtype=torch.float64)
    after = stored + layer.get_delta_weight("default").detach()
    expected = autograd_penalty({"w": after}, {"w": factors})
    item = (A, B, layer.scaling["default"], factors.transposed)
    torch.testing.assert_close(lora_anchor({"w": item}, 1.0).value(), expected)


@pytest.mark.parametrize("parameter", ["gate_up_proj", "down_proj"])
@pytest.mark.parametrize("stored", ["out, in", "in, out"])
def test_experts_as_peft_changes_them(parameter, stored, pico):
    base = pico("mixtral").double() if stored == "out, in" else gpt_oss().double()
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=[], target_parameters=[f"1.mlp.experts.{parameter}"])
    model = peft.get_peft_model(base, config)
    layer = next(module for module in model.modules() if isinstance(module, peft.tuners.lora.LoraLayer))
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    nn.init.normal_(B)
    weight = layer.get_param().detach()
    factors = factorize(weight, 4, seed=0, dtype=torch.float64)
    expected = autograd_penalty({"w": weight + layer.get_delta_weight("default").detach()}, {"w": factors})
    item = (A, B, layer.scaling["default"], factors if stored == "out, in" else factors.transposed)
    torch.testing.assert_close(lora_anchor({"w": item}, 1.0).value(), expected)


def gpt_oss():
    config = transformers.GptOssConfig(
        vocab_size=300, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config)


def test_refusals():
    _, items, _ = adapters("block")
    A, B, scale, factors = items["wide"]
    with pytest.raises(MidblockError, match="no weight to anchor"):
        lora_anchor({}, 1.0)
    with pytest.raises(MidblockError, match="unknown anchor scope"):
        lora_anchor(items, 1.0, "rows")
    with pytest.raises(MidblockError, match=r"Factors\.transposed"):
        lora_anchor({"w": (A, B, scale, factors.transposed)}, 1.0)
