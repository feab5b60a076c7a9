"""What an unfinished steering keeps comes back to the bit, and is made once."""

import pytest
import torch

from midblock.evaluation import TokenMean
from midblock.interventions.steer.kept import Kept


def test_a_value_is_made_once(tmp_path):
    made = iter([[[1, 2], [3]], "never"])
    for _ in range(2):
        assert Kept(tmp_path).value("answers", lambda: next(made)) == [[1, 2], [3]]
    assert next(made) == "never"


@pytest.mark.parametrize("kept", [True, False])
def test_a_mean_comes_back_to_the_bit(tmp_path, kept):
    index, counts = torch.arange(5), torch.tensor([3, 1, 2, 5, 4])
    sums = torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 3
    mean = TokenMean.of(index, sums, counts, seed=4)
    place = Kept(tmp_path if kept else None)
    found = [place.mean("nll", 4, lambda: mean) for _ in range(2)]
    for each in found:
        assert (each.value, each.low, each.high) == (mean.value, mean.low, mean.high)
        assert torch.equal(each.sums, mean.sums)
    assert [file.name for file in tmp_path.iterdir()] == ["nll.json"] * kept
