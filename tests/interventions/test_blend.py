from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from midblock.checkpoints import LowRankDelta
from midblock.interventions.blend import PIECE, Source, blend, pieces, round_to_odd

NUMBERS = st.floats(-1e4, 1e4).filter(lambda value: value == 0 or abs(value) > 1e-30)


@given(st.lists(NUMBERS, min_size=1, max_size=40))
def test_numpys_half_which_rounds_once(numbers):
    exact = torch.tensor(numbers, dtype=torch.float64)
    cut = exact.clone()
    round_to_odd(cut, torch.empty_like(cut))
    assert torch.equal(cut.float().double(), cut)
    assert np.array_equal(cut.to(torch.float16).numpy(), exact.numpy().astype(np.float16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_just_above_a_tie_goes_up_and_just_below_goes_down(dtype):
    half = torch.finfo(dtype).eps / 2
    exact = torch.tensor([1 + half + 1e-12, 1 + 3 * half - 1e-12, 1 + half, 1 + 3 * half], dtype=torch.float64)
    assert exact[:2].to(dtype).tolist() == [1, 1 + 4 * half]  # torch alone: both ways wrong
    made = blend(Source(exact), Source(exact), 0.0, 0, 4, dtype)
    assert made.tolist() == [1 + 2 * half, 1 + 2 * half, 1, 1 + 4 * half]


def test_pieces_cover_a_tensor_once_whatever_their_size():
    torch.manual_seed(0)
    base, tuned = torch.randn(2, 3 * PIECE + 17)
    spans = list(pieces(Source(base), Source(tuned)))
    assert spans[0][0] == 0
    assert spans[-1][1] == len(base)
    assert all(one[1] == two[0] for one, two in pairwise(spans))
    made = torch.cat([blend(Source(base), Source(tuned), 0.3, *span, torch.float32).clone() for span in spans])
    assert torch.equal(made, (0.7 * base.double() + 0.3 * tuned.double()).float())


@pytest.mark.parametrize("width", [48, PIECE + 5])
def test_a_low_rank_change_is_added_row_by_row(width):
    torch.manual_seed(0)
    base = torch.randn(7, width)
    delta = LowRankDelta(torch.randn(7, 2), torch.randn(2, width), 0.5)
    one, two = Source(base), Source(base, delta)
    made = torch.cat([blend(one, two, 0.25, *span, torch.float64).clone() for span in pieces(one, two)])
    expected = base.double() + 0.25 * 0.5 * (delta.B.double() @ delta.A.double())
    torch.testing.assert_close(made.view(7, width), expected, rtol=1e-13, atol=1e-13)
