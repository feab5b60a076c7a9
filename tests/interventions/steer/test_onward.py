"""Passes onward from the steered block are whole ones to the bit, in every family; where they are not, that is seen."""

import pytest
import torch

from midblock.checkpoints import Anatomy
from midblock.interventions.steer.onward import Onward, Whole, obstacle

IDS = torch.randint(3, 300, (4, 9), generator=torch.Generator().manual_seed(0))
IDS[1, 6:] = IDS[3, 4:] = 0


def directions(rows=4):
    return torch.randn(rows, 1, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_onward_from_a_block_is_the_whole_pass_to_the_bit(family, pico):
    anatomy = Anatomy.of(pico(family))
    assert obstacle(anatomy, IDS, directions()[0, 0], 0.5) is None
    onward, whole = Onward.of(anatomy, IDS), Whole(anatomy, IDS)
    for block in (0, 1, 1, 2):
        found = onward.normed(block, directions(), 0.5)
        assert torch.equal(found, whole.normed(block, directions(), 0.5))
    assert not torch.equal(found, whole.normed(2, directions(1), 0.5))
    assert all(not block._forward_hooks and not block._forward_pre_hooks for block in anatomy.blocks)


def test_blocks_are_not_run_below_the_steered_one(pico):
    anatomy = Anatomy.of(pico("llama", num_hidden_layers=6))
    onward, ran = Onward.of(anatomy, IDS), []
    for position, block in enumerate(anatomy.blocks):
        block.register_forward_hook(lambda *_, position=position: ran.append(position))
    onward.normed(4, directions(), 1.0)
    assert ran == [0, 1, 2, 3, 4, 5]  # on the way up, once
    onward.normed(5, directions(), 1.0)
    assert ran[6:] == [4, 5]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("beside", "steered behind block 0, its blocks run one by one do not make what it makes itself"),
        ("between", "block 1 does not take what block 0 put out, so blocks cannot be run one by one"),
    ],
)
def test_what_stands_in_the_way_is_seen(handing, how, message):
    assert obstacle(Anatomy.of(handing(how)), IDS, directions()[0, 0], 1.0) == message


def test_what_is_not_finite_is_left_to_the_scores(pico):
    model = pico("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] = torch.nan
    assert obstacle(Anatomy.of(model), IDS, directions()[0, 0], 1.0) is None
