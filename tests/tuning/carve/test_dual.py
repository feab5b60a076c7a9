"""The dual variable holds the loss at its budget, and says when it cannot."""

import math

import pytest
import torch

from midblock.base import MidblockError
from midblock.tuning.carve.dual import DECAY, DualControl
from midblock.tuning.carve.verdict import check_some, rank_correlation
from midblock.tuning.settings import Carving


def test_it_finds_the_optimum_of_a_toy():
    """Least −x with 1 + x² ≤ ε: x = √(ε − 1), held there by λ = 2x."""
    control, x = DualControl.of(Carving(mask_warmup_steps=20, lambda_max=5.0)), 0.0
    for _ in range(6000):
        control.see(1 + x**2)
        if control.budget is not None:
            x -= 0.02 * (2 * x - control.strength)
    assert control.budget == pytest.approx(1.3)
    assert x == pytest.approx(math.sqrt(0.3), rel=0.02)
    assert control.strength == pytest.approx(2 * math.sqrt(0.3), rel=0.02)


def test_warm_up_raises_the_pressure_and_sets_the_budget():
    control = DualControl.of(Carving(mask_warmup_steps=4, loss_budget=0.5))
    losses, pressed = [2.0, 1.0, 3.0, 2.0], []
    mean = 0.0
    for loss in losses:
        assert control.budget is None
        control.see(loss)
        pressed.append(control.pressure)
        mean = DECAY * mean + (1 - DECAY) * loss
    assert pressed == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert control.loss == pytest.approx(mean / (1 - DECAY**4))
    assert control.budget == pytest.approx(1.5 * control.loss)
    assert control.strength == 0.01


def test_what_was_learned_by_heart_has_a_budget_too():
    control = DualControl.of(Carving(mask_warmup_steps=1, loss_budget=0.5, budget_floor=0.2))
    control.see(1e-6)
    assert control.budget == pytest.approx(0.1, rel=1e-4)


def test_the_violation_is_clipped_and_so_is_the_strength():
    control = DualControl.of(Carving(mask_warmup_steps=1, violation_clip=0.5, lambda_max=0.02))
    control.see(1.0)
    control.see(1e6)
    assert control.strength == pytest.approx(0.01 * math.exp(-0.05))
    for _ in range(2000):
        control.see(0.0)
    assert control.strength == 0.02
    assert control.within


def test_it_goes_on_where_it_was():
    control, other = (DualControl.of(Carving(mask_warmup_steps=2)) for _ in range(2))
    for loss in (1.0, 2.0, 1.5):
        control.see(loss)
    other.go_on(control.carried())
    for each in (control, other):
        each.see(1.7)
    assert control == other


def test_a_carrier_of_nothing_or_of_everything_is_refused():
    on = {0: torch.tensor([True, True]), 1: torch.tensor([True])}
    with pytest.raises(MidblockError, match="all masks are on: the carrier would be the whole change"):
        check_some(on)
    with pytest.raises(MidblockError, match="all masks are off"):
        check_some({layer: ~each for layer, each in on.items()})
    check_some({**on, 1: torch.tensor([False])})


def test_a_correlation_with_the_start_tells_chance():
    start = torch.randn(500, generator=torch.Generator().manual_seed(0))
    assert rank_correlation(start > start.median(), start) == pytest.approx(0.866, abs=0.01)
    other = torch.randn(500, generator=torch.Generator().manual_seed(1)) > 0
    assert abs(rank_correlation(other, start)) < 0.1
    assert rank_correlation(torch.ones(500, dtype=torch.bool), start) is None
