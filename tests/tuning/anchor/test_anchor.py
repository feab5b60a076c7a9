"""Anchors in one process: gradients against autograd and finite differences, closed forms, invariances, refusals."""

import pytest
import torch
from torch import nn

from midblock.base import MidblockError
from midblock.tuning.anchor.anchor import Anchor, autograd_penalty
from midblock.tuning.anchor.factors import Factors, factorize
from midblock.tuning.anchor.full import full_anchor

SCOPES = ["block", "subspace"]
SHAPES = {"wide": (7, 12), "tall": (15, 6), "square": (9, 9), "experts": (3, 8, 5)}
K = 4
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def start(dtype: torch.dtype = torch.float64, factor_dtype: torch.dtype | None = None) -> tuple[dict, dict]:
    torch.manual_seed(0)
    weights = {name: torch.randn(shape, dtype=torch.float64).to(dtype) for name, shape in SHAPES.items()}
    kept = factor_dtype or dtype
    return weights, {name: factorize(weight, K, seed=0, dtype=kept) for name, weight in weights.items()}


def anchored(scope: str, amount: float = 0.3, **options) -> tuple[dict, dict, dict, Anchor]:
    """Origins, factors, parameters that moved since, and the anchor made before they did."""
    origins, factors = start()
    parameters = {name: nn.Parameter(weight.clone()) for name, weight in origins.items()}
    anchor = full_anchor({name: (parameters[name], factors[name]) for name in parameters}, 0.7, scope, **options)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter += amount * torch.randn_like(parameter)
    return origins, factors, parameters, anchor


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("scope", SCOPES)
def test_gradient_and_value_agree_with_autograd(scope, normalize):
    origins, factors, parameters, anchor = anchored(scope, normalize=normalize)
    before = {name: torch.randn_like(parameter) for name, parameter in parameters.items()}
    penalty = autograd_penalty(
        parameters, factors, strength=0.7, scope=scope, normalize=normalize, origins=origins
    )  # fmt: skip
    expected = torch.autograd.grad(penalty, list(parameters.values()))
    for name, parameter in parameters.items():
        parameter.grad = before[name].clone()
    there = {name: parameter.grad.data_ptr() for name, parameter in parameters.items()}
    torch.testing.assert_close(anchor.add_gradient(2.5), penalty.detach(), **CLOSE)
    for (name, parameter), gradient in zip(parameters.items(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, before[name] + 2.5 * gradient, **CLOSE)
        assert parameter.grad.data_ptr() == there[name]


@pytest.mark.parametrize("scope", SCOPES)
def test_gradient_agrees_with_finite_differences(scope):
    _, _, parameters, anchor = anchored(scope)
    anchor.add_gradient()
    for parameter in parameters.values():
        direction = torch.randn_like(parameter)
        ends = []
        for step in (1e-4, -2e-4):
            with torch.no_grad():
                parameter += step * direction
            ends.append(anchor.value())
        with torch.no_grad():
            parameter += 1e-4 * direction
        torch.testing.assert_close((ends[0] - ends[1]) / 2e-4, (parameter.grad * direction).sum(), rtol=1e-7, atol=1e-7)


def test_value_leaves_gradients_alone_and_agrees():
    _, _, parameters, anchor = anchored("block")
    value = anchor.value()
    assert all(parameter.grad is None for parameter in parameters.values())
    torch.testing.assert_close(value, anchor.add_gradient())
    assert value > 1


@pytest.mark.parametrize("factor_dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scope", SCOPES)
def test_zero_at_the_start(scope, dtype, factor_dtype):
    weights, factors = start(dtype, factor_dtype)
    parameters = {name: nn.Parameter(weight) for name, weight in weights.items()}
    anchor = full_anchor({name: (parameters[name], factors[name]) for name in parameters}, 1.0, scope)
    size = sum(float(kept.core.square().sum()) for kept in factors.values())
    assert abs(float(anchor.add_gradient())) < 1e-11 * size
    for parameter in parameters.values():
        assert parameter.grad.abs().max() < 1e-5
    with torch.no_grad():
        for parameter in parameters.values():
            parameter *= 1.25
    torch.testing.assert_close(float(anchor.value()), size / 16, rtol=0.05, atol=0)


def test_what_the_scopes_see():
    weight = torch.zeros(6, 5, dtype=torch.float64)
    weight.diagonal().copy_(torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]))
    factors = factorize(weight, 2, seed=0, dtype=torch.float64)
    seen = {}
    for scope in SCOPES:
        for row, column in ((0, 1), (0, 3), (4, 1), (4, 3)):
            parameter = nn.Parameter(weight.clone())
            anchor = full_anchor({"w": (parameter, factors)}, 1.0, scope)
            with torch.no_grad():
                parameter[row, column] += 0.5
            seen[scope, row, column] = round(float(anchor.value()), 9)
    assert [seen["block", 0, 1], seen["block", 0, 3], seen["block", 4, 1], seen["block", 4, 3]] == [0.25, 0, 0, 0]
    assert [seen["subspace", 0, 1], seen["subspace", 0, 3], seen["subspace", 4, 1], seen["subspace", 4, 3]] == [
        0.25,
        0.25,
        0.25,
        0,
    ]


@pytest.mark.parametrize("scope", SCOPES)
def test_with_every_direction_it_is_an_l2_anchor(scope):
    torch.manual_seed(0)
    weight = torch.randn(8, 8, dtype=torch.float64)
    parameter = nn.Parameter(weight.clone())
    anchor = full_anchor({"w": (parameter, factorize(weight, 8, seed=0, dtype=torch.float64))}, 1.0, scope)
    delta = 0.1 * torch.randn_like(weight)
    with torch.no_grad():
        parameter += delta
    torch.testing.assert_close(anchor.add_gradient(), delta.square().sum(), **CLOSE)
    torch.testing.assert_close(parameter.grad, 2 * delta, **CLOSE)


@pytest.mark.parametrize("scope", SCOPES)
def test_turning_weight_and_factors_together_changes_nothing(scope):
    torch.manual_seed(0)
    origin, delta = torch.randn(2, 10, 7, dtype=torch.float64)
    Q, R = (torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q for size in (10, 7))
    factors = factorize(origin, 3, seed=0, dtype=torch.float64)
    turned = Factors(Q @ factors.U, factors.core, R @ factors.V)
    values, gradients = [], []
    for left, right, kept in ((torch.eye(10).double(), torch.eye(7).double(), factors), (Q, R, turned)):
        parameter = nn.Parameter(left @ origin @ right.T)
        anchor = full_anchor({"w": (parameter, kept)}, 1.0, scope)
        with torch.no_grad():
            parameter += left @ delta @ right.T
        values.append(anchor.add_gradient())
        gradients.append(left.T @ parameter.grad @ right)
    torch.testing.assert_close(values[0], values[1], **CLOSE)
    torch.testing.assert_close(gradients[0], gradients[1], **CLOSE)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_transposed_weight_has_the_same_penalty(scope):
    torch.manual_seed(0)
    origin, delta = torch.randn(2, 10, 7, dtype=torch.float64)
    factors = factorize(origin, 3, seed=0, dtype=torch.float64)
    found = []
    for weight, change, kept in ((origin, delta, factors), (origin.T, delta.T, factors.transposed)):
        parameter = nn.Parameter(weight.clone())
        anchor = full_anchor({"w": (parameter, kept)}, 1.0, scope)
        with torch.no_grad():
            parameter += change
        found.append((anchor.add_gradient(), parameter.grad))
    torch.testing.assert_close(found[0][0], found[1][0], **CLOSE)
    torch.testing.assert_close(found[0][1], found[1][1].T, **CLOSE)


@pytest.mark.parametrize("scope", SCOPES)
def test_normalized_it_does_not_depend_on_the_weight_s_size(scope):
    values = []
    for size in (1.0, 10.0):
        torch.manual_seed(0)
        weight = size * torch.randn(6, 9, dtype=torch.float64)
        parameter = nn.Parameter(weight.clone())
        anchor = full_anchor(
            {"w": (parameter, factorize(weight, 3, seed=0, dtype=torch.float64))}, 1.0, scope, normalize=True
        )
        with torch.no_grad():
            parameter *= 1.5
        values.append(anchor.value())
    torch.testing.assert_close(values, [torch.tensor(0.25).double()] * 2)


def test_a_weight_of_zeros_normalized_is_free():
    weight = torch.zeros(6, 9)
    parameter = nn.Parameter(torch.ones(6, 9))
    anchor = full_anchor({"w": (parameter, factorize(weight, 3, seed=0))}, 1.0, normalize=True)
    assert anchor.add_gradient() == 0
    assert parameter.grad.abs().max() == 0


def test_bfloat16_gradients_are_rounded_once():
    weights, factors = start(torch.float32)
    parameter = nn.Parameter((weights["tall"] * 1.5).bfloat16())
    exact = nn.Parameter(parameter.detach().float())
    for each in (parameter, exact):
        full_anchor({"w": (each, factors["tall"])}, 1.0).add_gradient()
    assert parameter.grad.dtype == torch.bfloat16
    torch.testing.assert_close(parameter.grad.float(), exact.grad, rtol=0.02, atol=0.02 * float(exact.grad.abs().max()))


def test_descending_it_brings_the_block_back_and_only_that():
    _, factors, parameters, _ = anchored("block", amount=1.0)
    parameter, kept = parameters["wide"], factors["wide"]
    anchor, before = full_anchor({"w": (parameter, kept)}, 1.0), parameter.detach().clone()
    anchor.add_gradient()
    with torch.no_grad():
        parameter -= 0.5 * parameter.grad  # the penalty is quadratic with curvature 2 on the block
    assert anchor.value() < 1e-20
    left = torch.eye(7, dtype=torch.float64) - kept.U @ kept.U.T
    torch.testing.assert_close(left @ parameter.detach(), left @ before, **CLOSE)


def test_refusals():
    weights, factors = start()
    wide = nn.Parameter(weights["wide"])
    with pytest.raises(MidblockError, match="no weight to anchor"):
        full_anchor({}, 1.0)
    with pytest.raises(MidblockError, match=r"unknown anchor scope 'blok'.*'block'"):
        full_anchor({"w": (wide, factors["wide"])}, 1.0, "blok")
    with pytest.raises(MidblockError, match=r"shape \[15, 6\] for one of \[7, 12\]"):
        full_anchor({"w": (wide, factors["tall"])}, 1.0)
    with pytest.raises(MidblockError, match=r"Factors\.transposed"):
        full_anchor({"w": (wide, factors["wide"].transposed)}, 1.0)
    with pytest.raises(MidblockError, match="w is not the weight its factors were made of"):
        full_anchor({"w": (nn.Parameter(2 * weights["wide"]), factors["wide"])}, 1.0, "subspace")
