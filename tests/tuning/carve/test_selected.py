"""One parameter between two models: masks' gradients in closed form, and what is off stays to the bit."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from midblock.checkpoints import Anatomy
from midblock.tuning.carve.carver import Carver
from midblock.tuning.carve.channels import ChannelGroups, Channels
from midblock.tuning.carve.dual import DualControl
from midblock.tuning.carve.masks import Masks
from midblock.tuning.carve.selected import SelectedWeight
from midblock.tuning.place.carved import between
from midblock.tuning.settings import Carving

IDS = torch.tensor([[5, 9, 120, 33, 7, 250]])
SHAPES = {
    "both": ((300, 700), (torch.arange(300), 300 + torch.arange(700) % 350)),
    "rows": ((40, 30), (torch.arange(40) // 2, None)),
    "columns": ((40, 30), (None, torch.arange(30))),
    "vector": ((50,), (torch.arange(50),)),
    "experts": ((4, 6, 5), (torch.arange(4), None, None)),
}


def made(kind, seed=0):
    """A weight, both models' values, and masks of which a third is off."""
    shape, index = SHAPES[kind]
    stream = torch.Generator().manual_seed(seed)
    base, tuned = (torch.randn(shape, generator=stream, dtype=torch.float64) for _ in range(2))
    on = torch.rand(650, generator=stream) > 0.3
    weight = SelectedWeight.of(nn.Parameter(tuned.clone()), base.clone(), Channels(0, index))
    weight.select(torch.ones_like(on), on, None)
    return weight, base, tuned, on, index


def relaxed(base, tuned, masks, index):
    """W_b + (m_row m_colᵀ) ⊙ Δ."""
    m = torch.ones_like(base)
    for dim, each in enumerate(index):
        if each is not None:
            m = m * masks[each].reshape(-1, *(1,) * (base.ndim - 1 - dim))
    return base + m * (tuned - base)


@pytest.mark.parametrize("kind", SHAPES)
def test_masks_select(kind):
    weight, base, tuned, on, index = made(kind)
    chosen = relaxed(torch.zeros_like(base), torch.ones_like(base), on.double(), index) > 0
    assert torch.equal(weight.parameter.data, torch.where(chosen, tuned, base))
    assert torch.equal(weight.rest, torch.where(chosen, base, tuned))


@pytest.mark.parametrize("kind", SHAPES)
def test_gradients_are_those_of_autograd(kind):
    weight, base, tuned, on, index = made(kind)
    masks = on.double().requires_grad_()
    upstream = torch.randn(base.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    (relaxed(base, tuned, masks, index) * upstream).sum().backward()
    weight.parameter.grad = upstream.clone()
    total = torch.zeros(len(on), dtype=torch.float64)
    weight.gather(on, total, trained=True)
    torch.testing.assert_close(total, masks.grad, rtol=1e-10, atol=1e-10)
    chosen = relaxed(torch.zeros_like(base), torch.ones_like(base), on.double(), index)
    assert torch.equal(weight.parameter.grad, upstream * chosen)


def test_frozen_weights_keep_no_gradient():
    weight, _, _, on, _ = made("both")
    weight.parameter.grad = torch.ones_like(weight.parameter)
    weight.gather(on, torch.zeros(len(on), dtype=torch.float64), trained=False)
    assert weight.parameter.grad is None


@pytest.fixture(scope="module")
def carved(pico, tuned_from):
    """A pico GPT-2 between itself and a tuned one, some masks off; in float64, which Llama's norms are not."""
    base = pico("gpt2").double().requires_grad_(False)
    tuned = tuned_from(base)
    model = copy.deepcopy(base)
    groups, weights = between(model, copy.deepcopy(tuned), "sft")
    stream = torch.Generator().manual_seed(3)
    drawn = {
        layer: torch.rand(groups.size(layer), generator=stream, dtype=torch.float64) - 0.3 for layer in groups.layers
    }
    carver = Carver(Carving(), groups, weights, Masks.of(drawn), DualControl.of(Carving()))
    for weight in weights.values():
        weight.parameter.requires_grad_()
    return base, tuned, model, carver


def loss_of(model, values):
    logits = functional_call(model, values, (), {"input_ids": IDS, "use_cache": False}).logits
    return nn.functional.cross_entropy(logits[0, :-1], IDS[0, 1:])


def test_gradients_of_a_model_are_those_of_relaxed_masks(carved):
    """Against autograd through W_b + (m_row m_colᵀ) ⊙ Δ, and against finite differences of the same."""
    base, tuned, model, carver = carved
    masks = {layer: on.double().requires_grad_() for layer, on in carver.on.items()}

    def values(masks):
        found = {}
        for name, channels in carver.groups.channels.items():
            pair = base.get_parameter(name).data, tuned.get_parameter(name).data
            found[name] = relaxed(*pair, masks[channels.layer], channels.index)
        return found

    loss_of(base, values(masks)).backward()
    loss_of(model, {}).backward()
    for weight in carver.weights.values():
        weight.gather(carver.on[weight.layer], carver.masks.gradients[weight.layer], trained=True)
    step, stream = 1e-5, torch.Generator().manual_seed(4)
    for layer, found in carver.masks.gradients.items():
        torch.testing.assert_close(found, masks[layer].grad, rtol=1e-7, atol=1e-10)
        at = int(torch.randint(len(found), (), generator=stream))
        moved = []
        for sign in (1, -1):
            other = {key: each.detach().clone() for key, each in masks.items()}
            other[layer][at] += sign * step
            with torch.no_grad():
                moved.append(float(loss_of(base, values(other))))
        assert float(found[at]) == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("fused", [False, True])
def test_what_is_off_stays_to_the_bit_under_adam(fused):
    """Masks flip to and fro; an entry that is off is the base's, and its tuned value waits unchanged."""
    stream = torch.Generator().manual_seed(0)
    base, tuned = (torch.randn(20, 30, generator=stream) for _ in range(2))
    weight = SelectedWeight.of(
        nn.Parameter(tuned.clone()), base.clone(), Channels(0, (torch.arange(20), torch.arange(20, 50)))
    )
    adam = torch.optim.AdamW([weight.parameter], lr=0.1, weight_decay=0.0, fused=fused)
    on, last = torch.ones(50, dtype=torch.bool), tuned.clone()
    for _ in range(12):
        after = torch.rand(50, generator=stream) > 0.3
        state = adam.state[weight.parameter].get("exp_avg")
        weight.select(on, after, state)
        on = after
        chosen = on[:20, None] & on[None, 20:]
        assert torch.equal(weight.parameter.data, torch.where(chosen, last, base))
        weight.parameter.grad = torch.randn(20, 30, generator=stream)
        weight.gather(on, torch.zeros(50, dtype=torch.float64), trained=True)
        adam.step()
        assert torch.equal(weight.parameter.data[~chosen], base[~chosen])
        assert torch.equal(weight.rest[~chosen], last[~chosen])
        assert torch.equal(weight.rest[chosen], base[chosen])
        last = torch.where(chosen, weight.parameter.data, last)
    assert not torch.equal(last, tuned)


def test_masks_begin_as_drawn_and_go_straight_through(pico):
    groups = ChannelGroups.of(Anatomy.of(pico("llama")))
    masks = Masks.drawn(groups, seed=0)
    drawn = torch.cat(list(masks.logits.values()))
    assert len(drawn) == masks.total == groups.total
    assert float(drawn.mean()) == pytest.approx(1.5, abs=0.05)
    assert float(drawn.std()) == pytest.approx(0.5, abs=0.05)
    assert torch.equal(drawn, torch.cat(list(Masks.drawn(groups, seed=0).logits.values())))
    before = masks.logits[0].clone().requires_grad_()
    upstream = torch.randn(len(before), dtype=torch.float64)
    (7.0 * (torch.sigmoid(before) * upstream).sum() + 0.5 * torch.sigmoid(before).sum()).backward()
    masks.gradients[0] += upstream
    masks.step(0.1, 7.0, 0.5)
    torch.testing.assert_close(masks.logits[0], (before.detach() - 0.1 * before.grad).clamp(-4, 4))
    assert not masks.gradients[0].any()
