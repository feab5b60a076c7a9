"""Cells run from recorded states are, to the bit, whole passes through models whose blocks were exchanged."""

import pytest
import torch

from midblock.base import LayerPlan, MidblockError
from midblock.checkpoints import Anatomy
from midblock.interventions.swap.cells import Cell, make_cells, run_cells
from midblock.interventions.swap.exchange import exchanged
from midblock.trace import record_calls, watch

PADDED = torch.randint(3, 300, (3, 11), generator=torch.Generator().manual_seed(0))
PADDED[1, 7:] = PADDED[2, 4:] = 0


@torch.inference_mode()
def whole_pass(model):
    """What leaves the last block."""
    seen = []
    with watch(Anatomy.of(model), [2], lambda layer, states: seen.append(states)):
        model(input_ids=PADDED, use_cache=False)
    return seen[0]


def record(model, keep):
    with record_calls(Anatomy.of(model), keep) as ran, torch.inference_mode():
        Anatomy.of(model).backbone(input_ids=PADDED, use_cache=False)
    return ran


EMBEDDING = Cell(-1, -1)
SETS = {
    "each": [EMBEDDING, *make_cells(3, 3)],
    "bottom": make_cells(3, 3, cumulative="bottom"),
    "top": make_cells(3, 3, cumulative="top"),
    "depth": make_cells(2, 3, depth=1),
}


def test_cells_are_whole_passes(family, pico, tuned_from):
    host = pico(family)
    donor = tuned_from(host)
    before = whole_pass(host)
    for name, cells in SETS.items():
        keep = {max(cell.first, 0) for cell in cells}
        ran, theirs = record(host, keep), record(donor, keep)
        found = dict(run_cells(Anatomy.of(host), Anatomy.of(donor), ran, theirs, cells))
        assert set(found) == set(cells)
        for cell, states in found.items():
            with exchanged(host, donor, cell.blocks, embedding=cell == EMBEDDING):
                assert torch.equal(states, whole_pass(host)), (name, cell)
            assert not torch.equal(states, before), (name, cell)


def test_each_block_of_the_donor_runs_once_where_cells_begin_alike(pico, tuned_from):
    host = pico("llama")
    donor = tuned_from(host)
    ran, theirs = record(host, {0}), record(donor, {0})
    runs = []
    for block in donor.model.layers:
        block.register_forward_pre_hook(lambda module, args: runs.append(module.self_attn.layer_idx))
    list(run_cells(Anatomy.of(host), Anatomy.of(donor), ran, theirs, SETS["bottom"]))
    assert runs == [0, 1, 2]


@pytest.mark.parametrize("total", [2, 5, 12, 30])
def test_segments_are_those_of_a_layer_plan(total):
    for segments in range(2, total + 1):
        cells = make_cells(segments, total)
        assert [block for cell in cells for block in cell.blocks] == list(range(total))
        for place, cell in enumerate(cells):
            pattern = "0" * place + "1" + "0" * (segments - place - 1)
            assert list(cell.blocks) == list(LayerPlan.parse(pattern, total).blocks)
        top, bottom = (make_cells(segments, total, cumulative=way) for way in ("top", "bottom"))
        assert [(cell.first, total - 1) for cell in cells] == [(cell.first, cell.last) for cell in top]
        assert [(0, cell.last) for cell in cells] == [(cell.first, cell.last) for cell in bottom]


def test_depth_takes_the_last_blocks_of_a_segment():
    """P1 swaps the last two blocks of each of five segments of 32."""
    assert [str(cell) for cell in make_cells(5, 32, depth=2)] == ["5-6", "11-12", "18-19", "24-25", "30-31"]
    assert make_cells(5, 32, depth=9) == make_cells(5, 32)
    assert str(EMBEDDING) == "embedding"
    assert list(EMBEDDING.blocks) == []


@pytest.mark.parametrize(
    ("segments", "options", "message"),
    [
        (4, {}, r"^4 segments; the model has 3 blocks \(1 to 3, or each\)"),
        (0, {}, "^0 segments"),
        (3, {"depth": 0}, "^depth is 0; it must be 1 or more"),
        (3, {"depth": 1, "cumulative": "top"}, "^depth picks blocks of each segment, which cumulative swaps whole"),
    ],
)
def test_cells_that_cannot_be_had(segments, options, message):
    with pytest.raises(MidblockError, match=message):
        make_cells(segments, 3, **options)
