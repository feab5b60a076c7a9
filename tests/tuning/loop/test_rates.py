"""The learning rate by depth: factors, the optimiser's groups, and what a step does."""

import re

import pytest
import torch

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, TensorReader
from midblock.tuning.loop.rates import DepthRates
from midblock.tuning.place.gradients import Gradients


def test_one_number_falls_from_block_to_block():
    rates = DepthRates.of("0.5", 4)
    assert [rates.of_layer(layer) for layer in range(-1, 5)] == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 1]


def test_several_are_spread_from_the_bottom_up():
    rates = DepthRates.of("0.1,1,0.2", 5)
    assert [rates.of_layer(layer) for layer in range(-1, 6)] == pytest.approx([0.1, 0.1, 0.55, 1, 0.6, 0.2, 0.2])
    assert DepthRates.of(None, 5) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no number"),
        ("fast", "no number"),
        ("0", "above 0"),
        ("1,-1", "above 0"),
        ("2000", "at most at 1,000"),
        ("1,1,1,1", "fit neither"),
        ("nan", "not finite"),
    ],
)
def test_what_is_no_factor_is_said_in_one_line(text, said, tuned):
    with pytest.raises(MidblockError, match=said):
        tuned(lr_by_depth=text, max_steps=1)


def moved(artifact, base):
    """How far each layer's matrices moved in the only step: with SGD, by the rate times the gradient."""
    found = {}
    with TensorReader.open(artifact.path) as new, TensorReader.open(base) as old:
        for name in old:
            block = re.search(r"layers\.(\d+)\.", name)
            layer = int(block[1]) if block else -1 if "embed" in name else 3
            gap = (new.read(name).double() - old.read(name).double()).norm()
            found[layer] = found.get(layer, 0.0) + float(gap) ** 2
    return {layer: total**0.5 for layer, total in found.items()}


def test_a_step_is_as_long_as_its_depths_factor_says(tuned, llama):
    options = {"method": "full", "also": ("embedding",), "layers": "all", "max_steps": 1, "learning_rate": 0.1}
    options |= {"optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    rates = {"plain": None, "scaled": "0.5,0.25,2"}
    plain, scaled = (moved(tuned(name=name, lr_by_depth=each, **options), llama) for name, each in rates.items())
    for layer, factor in {-1: 0.5, 0: 0.5, 1: 0.25, 2: 2.0}.items():
        assert scaled[layer] == pytest.approx(factor * plain[layer], rel=1e-3)


def test_the_log_tells_the_courses_own_rate_and_the_plan_the_factors(tuned):
    artifact = tuned(lr_by_depth="0.5", layers="all", max_steps=3, learning_rate=1e-3, lr_scheduler_type="constant")
    assert [line["learning_rate"] for line in artifact.log] == pytest.approx([1e-3] * 3)
    assert '"learning_rate_factors"' in (artifact.folder / "plan.json").read_text()


def test_an_optimiser_that_does_not_hold_all_parameters_is_refused(pico):
    model = pico("llama")
    gradients = Gradients(model, Anatomy.of(model).projection_of)
    optimizer = torch.optim.SGD(list(model.parameters())[1:])
    with pytest.raises(MidblockError, match="SGD does not take a learning rate by depth"):
        DepthRates.of("0.5", 3).apply(optimizer, gradients)
