"""The base inside an adapted model: it shows through, and afterwards everything is as before."""

import copy

import pytest
import torch

from midblock.base import LayerPlan, MidblockError
from midblock.checkpoints import without_adapters
from midblock.tuning.place.adapter_plan import place_adapters
from midblock.tuning.place.adapters import attach
from midblock.tuning.settings import Placement

IDS = torch.tensor([[5, 9, 120, 33, 7, 250, 41, 8, 99, 17]])
ENDS = LayerPlan.parse("4,0,3", 3)


def attached(model, **options):
    settings = Placement(target_modules="all", **options)
    return attach(model, place_adapters(model, ENDS, settings), settings, seed=0)


def disturb(model):
    """Adapters as after training."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def test_the_base_shows_through_and_nothing_else_changes(family, pico):
    model = attached(pico(family))
    disturb(model)
    tuned, wanted = logits(model), [value.requires_grad for value in model.parameters()]
    state = copy.deepcopy(model.state_dict())
    with without_adapters(model):
        assert torch.equal(logits(model), logits(pico(family)))
        assert [value.requires_grad for value in model.parameters()] == wanted
    assert torch.equal(logits(model), tuned)
    assert [value.requires_grad for value in model.parameters()] == wanted
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_adapters_come_back_after_an_exception_and_when_nested(pico):
    model = attached(pico("llama"))
    disturb(model)
    tuned, base = logits(model), logits(pico("llama"))
    with pytest.raises(ZeroDivisionError), without_adapters(model):
        raise ZeroDivisionError
    assert torch.equal(logits(model), tuned)
    with without_adapters(model):
        with without_adapters(model):
            pass
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), tuned)


def test_a_reference_inside_a_step_leaves_the_gradient_alone(pico):
    gradients = []
    for with_reference in (False, True):
        model = attached(pico("llama"), use_dora=True)
        disturb(model)
        if with_reference:
            with torch.no_grad(), without_adapters(model):
                model(input_ids=IDS, use_cache=False)
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        gradients.append([value.grad for value in model.parameters() if value.requires_grad])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_base_that_was_altered_is_not_taken_for_the_base(pico, init):
    model = attached(pico("llama"), init_lora_weights=init)
    with pytest.raises(MidblockError, match=f"start by {init} alter the base"), without_adapters(model):
        pass


def test_merged_adapters_cannot_be_stepped_around(pico):
    model = attached(pico("llama"))
    model.merge_adapter()
    with pytest.raises(MidblockError, match="merged"), without_adapters(model):
        pass
