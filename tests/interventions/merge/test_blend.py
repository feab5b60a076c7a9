from itertools import pairwise

import pytest
import torch

from midblock.checkpoints import LowRankDelta
from midblock.interventions.merge.blend import PIECE, Source, blend, pieces


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("alpha", [0.5, 0.3, -1.0])
def test_float64_and_torchs_rounding_at_the_end(dtype, alpha):
    torch.manual_seed(0)
    base, tuned = torch.randn(2, 5000).to(dtype)
    made = blend(Source(base), Source(tuned), alpha, 0, 5000, dtype)
    assert torch.equal(made, ((1 - alpha) * base.double() + alpha * tuned.double()).to(dtype))


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
