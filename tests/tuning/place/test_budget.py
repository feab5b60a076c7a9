"""Budgets: closed forms from the papers, and what must hold for any."""

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midblock.base import LayerPlan, MidblockError
from midblock.tuning.place.budget import BlockCost, alpha_for, block_ranks, matched_ranks, nearest_ranks, shared_ranks
from midblock.tuning.settings import Placement

EVEN = (BlockCost(100),) * 16
COSTS = st.lists(st.integers(1, 500), min_size=1, max_size=8)


def ranks(text, costs=EVEN, **options):
    return block_ranks(LayerPlan.parse(text, len(costs)), Placement(**options), costs)


@pytest.mark.parametrize(
    ("plan", "rank"), [("all", 64), ("01000", 341), ("01100", 170), ("01110", 113), ("10000", 256)]
)
def test_the_ranks_of_p1(plan, rank):
    # 16 blocks in five segments: the first has four, the others three
    found = ranks(plan, rank_budget=1024)
    assert set(found) == {rank}


def test_each_block_of_a_segment_has_the_segments_rank():
    assert ranks("0,42,42,0,0") == (42,) * 6
    assert ranks("0,42,0,7,0") == (42,) * 3 + (7,) * 3


def test_without_more_the_rank_is_lora_r():
    assert ranks("6-9") == (16,) * 4
    assert ranks("6-9", lora_r=5) == (5,) * 4


def test_the_plans_ranks_stand_before_lora_r():
    assert ranks("ranks:8,4", lora_r=99) == (8,) * 8 + (4,) * 8


@pytest.mark.parametrize("budget", [{"rank_budget": 64}, {"match_parameters": "all:4"}])
def test_ranks_and_a_budget_are_too_much(budget):
    with pytest.raises(MidblockError, match=f"so does {next(iter(budget))}"):
        ranks("0,42,42,0,0", **budget)


def test_a_small_budget_names_the_smallest():
    assert ranks("01100", rank_budget=6) == (1,) * 6
    with pytest.raises(MidblockError, match=r"5 is less than rank 1 on each of 6 blocks \(the smallest is 6\)"):
        ranks("01100", rank_budget=5)


@given(st.integers(1, 5000), st.integers(1, 100))
def test_a_shared_budget_is_never_exceeded_and_hardly_wasted(budget, blocks):
    if budget < blocks:
        with pytest.raises(MidblockError):
            shared_ranks(budget, blocks)
        return
    found = shared_ranks(budget, blocks)
    assert len(found) == blocks
    assert len(set(found)) == 1
    assert budget - blocks < sum(found) <= budget


def test_matching_in_closed_form():
    # 16 blocks × 64 × 100 over 3 blocks: 341.33 each, so one block of the three gets one more
    assert ranks("01000", match_parameters="all:64") == (342, 341, 341)
    assert ranks("all", match_parameters="all:64") == (64,) * 16
    assert ranks("0-7", match_parameters="all:64") == (128,) * 8


@pytest.mark.parametrize("notation", ["01000", "4-6", "blocks:4,5,6", "0.26-0.42"])
def test_the_other_plan_may_be_written_in_any_way(notation):
    assert LayerPlan.parse(notation, 16).blocks == (4, 5, 6)
    assert ranks("all", match_parameters=f"{notation}:64") == (12,) * 16


@given(COSTS, st.integers(0, 100_000))
def test_no_such_ranks_come_nearer(costs, wanted):
    found = nearest_ranks(wanted, costs)
    total = sum(rank * cost for rank, cost in zip(found, costs, strict=True))
    assert max(found) - min(found) <= 1
    assert list(found) == sorted(found, reverse=True)
    assert abs(total - wanted) <= max(costs) / 2
    low = wanted // sum(costs)
    others = [rank * sum(costs) + sum(costs[:first]) for rank, first in product(range(low + 2), range(len(costs) + 1))]
    assert abs(total - wanted) == min(abs(other - wanted) for other in others)


@given(COSTS, st.integers(1, 64), st.data())
def test_a_matched_plan_is_within_half_a_rank_of_the_other(costs, rank, data):
    blocks = data.draw(st.sets(st.integers(0, len(costs) - 1), min_size=1))
    plan = LayerPlan(len(costs), tuple(sorted(blocks)))
    found = matched_ranks(f"all:{rank}", plan, tuple(BlockCost(cost) for cost in costs))
    total = sum(costs[block] * own for block, own in zip(plan.blocks, found, strict=True))
    assert abs(total - rank * sum(costs)) <= max(costs[block] for block in plan.blocks) / 2


def test_what_does_not_grow_with_the_rank_is_counted_too():
    costs = (BlockCost(10, fixed=20),) * 4
    # four blocks at rank 3: 4·(30 + 20) = 200; one block: 20 + 10·18
    assert ranks("0-0", costs, match_parameters="all:3") == (18,)


def test_too_little_to_match_says_what_rank_one_takes():
    with pytest.raises(MidblockError, match=r"'0-0:3' is 300 parameters, less than rank 1 .* \(those take 1,600\)"):
        ranks("all", match_parameters="0-0:3")


@pytest.mark.parametrize("text", ["64", "all", "all:", "all:0", "all:x", ":64", "all:-3"])
def test_a_match_that_cannot_be_read(text):
    with pytest.raises(MidblockError, match="cannot read match_parameters"):
        ranks("all", match_parameters=text)


def test_a_match_with_ranks_in_its_plan():
    with pytest.raises(MidblockError, match="gives ranks twice"):
        ranks("all", match_parameters="0,42,42,0,0:64")


@given(st.integers(1, 512), st.floats(0.01, 100))
def test_the_scale_is_lora_scale_whatever_the_rank(rank, scale):
    assert alpha_for(rank, Placement(lora_scale=scale)) / rank == pytest.approx(scale)
    stabilised = alpha_for(rank, Placement(lora_scale=scale, use_rslora=True))
    assert stabilised / math.sqrt(rank) == pytest.approx(scale)


def test_a_fixed_alpha_overrides_the_scale():
    for stabilised in (False, True):
        assert alpha_for(341, Placement(lora_alpha=128, lora_scale=7.0, use_rslora=stabilised)) == 128
