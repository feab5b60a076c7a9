"""Loads and choices of experts: closed forms, bounds, and what no change must give."""

import math

import pytest
import torch

from midblock.metrics import routing
from midblock.metrics.routing import Loads, Routed, Routings

CHOICES = (
    routing.router_change, routing.router_change_own, routing.router_change_reaction,
    routing.router_js, routing.router_js_own, routing.router_js_reaction,
)  # fmt: skip


def routed(experts, weights, count=4):
    """One prompt whose tokens choose these experts."""
    experts, weights = torch.tensor([experts]), torch.tensor([weights], dtype=torch.float64)
    shares = torch.zeros(*experts.shape[:2], count, dtype=torch.float64).scatter_add_(2, experts, weights)
    return Routed(experts, shares / shares.sum(-1, keepdim=True))


def mask(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def whole(counts, base=None):
    counts = torch.tensor(counts, dtype=torch.float64)
    base = None if base is None else torch.tensor(base, dtype=torch.float64)
    return Loads(counts, torch.arange(len(counts))[None], base)


def test_load_is_the_share_of_all_choices_over_prompts_of_any_length():
    loads = whole([[3, 1, 0, 0], [1, 1, 1, 1]])
    assert routing.expert_load(loads)[0].tolist() == [0.5, 0.25, 0.125, 0.125]


def test_balance_is_one_where_all_get_as_much_and_none_where_one_gets_all():
    assert float(routing.expert_load_entropy(whole([[2, 2, 2, 2]]))) == pytest.approx(1)
    assert float(routing.expert_load_entropy(whole([[8, 0, 0, 0]]))) == 0
    half = whole([[1, 1, 0, 0]])
    assert float(routing.expert_load_entropy(half)) == pytest.approx(math.log(2) / math.log(4))


def test_the_shift_is_the_share_that_goes_elsewhere():
    """A tenth of the choices goes from the first expert to the last."""
    loads = whole([[4, 5, 0, 1]], [[5, 5, 0, 0]])
    assert float(routing.expert_load_shift(loads)) == pytest.approx(0.1)
    assert routing.expert_load_change(loads)[0].tolist() == pytest.approx([-0.1, 0, 0, 0.1])


def test_a_load_beside_itself_has_not_moved_and_one_beside_nothing_is_not_compared():
    same = whole([[4, 5, 0, 1]], [[4, 5, 0, 1]])
    assert float(routing.expert_load_shift(same)) == 0
    assert routing.expert_load_shift(whole([[4, 5, 0, 1]])) is None


def test_disjoint_loads_are_as_far_apart_as_can_be():
    assert float(routing.expert_load_shift(whole([[0, 0, 3, 1]], [[2, 2, 0, 0]]))) == 1


def test_sets_of_prompts_are_loads_of_their_own():
    counts = torch.tensor([[1.0, 0], [0, 1], [1, 1]]).double()
    loads = Loads(counts, torch.tensor([[0, 1], [1, 2]]))
    assert routing.expert_load(loads).tolist() == [[0.5, 0.5], [1 / 3, 2 / 3]]


def test_experts_that_differ_whatever_their_order():
    base = routed([[0, 1], [0, 1], [0, 1], [3, 2]], [[0.5, 0.5]] * 4)
    tuned = routed([[1, 0], [1, 2], [2, 3], [0, 1]], [[0.5, 0.5]] * 4)
    found = Routings(base, tuned, mask([True, True, True, False]))
    assert float(routing.router_change(found)) == pytest.approx((0 + 0.5 + 1) / 3)


def test_divergence_of_two_mixes_in_closed_form():
    """Of (1, 0) and (½, ½): ln(4/3) + … = ½ ln(4/3) + ½ (½ ln(2/3) + ½ ln 2)."""
    base, tuned = routed([[0, 1]], [[1.0, 0.0]]), routed([[0, 1]], [[2.0, 2.0]])
    found = float(routing.router_js(Routings(base, tuned, mask([True]))))
    assert found == pytest.approx(0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3) + 0.25 * math.log(2))
    apart = Routings(routed([[0, 1]], [[1.0, 3.0]]), routed([[2, 3]], [[1.0, 1.0]]), mask([True]))
    assert float(routing.router_js(apart)) == pytest.approx(math.log(2))


def test_the_same_choice_differs_in_nothing():
    same = routed([[0, 2], [1, 3]], [[0.3, 0.7], [0.9, 0.1]])
    found = Routings(same, same, mask([True, True]), same)
    assert [float(metric(found)) for metric in CHOICES] == [0] * 6


def test_change_is_at_most_own_and_reaction_together():
    stream = torch.Generator().manual_seed(0)

    def drawn():
        experts = torch.stack([torch.randperm(4, generator=stream)[:2] for _ in range(40)]).tolist()
        return routed(experts, torch.rand(40, 2, generator=stream).tolist())

    found = Routings(drawn(), drawn(), mask([True] * 40), drawn())
    change, own, reaction, js, *_ = (float(metric(found)) for metric in CHOICES)
    assert 0 < change <= own + reaction
    assert 0 < js <= math.log(2)


def test_a_router_that_was_not_asked_has_no_own_change():
    same = routed([[0, 2]], [[0.3, 0.7]])
    found = Routings(same, same, mask([True]))
    assert [math.isnan(float(metric(found))) for metric in CHOICES] == [False, True, True, False, True, True]
