"""The tests' own guard: a wrong shape, a wrong type and a wrong field are found wherever midblock is called."""

import numpy as np
import pytest
import torch
from jaxtyping import Float, TypeCheckError

from midblock.base import Estimate, LayerPlan
from midblock.base.bootstrap import quantiles
from midblock.base.estimate import widened
from midblock.trace.rows import Rows

from .checking import is_shaped


def test_a_wrong_shape_is_found():
    index = torch.zeros(3, dtype=torch.long)
    Rows().update(index, torch.zeros(3, 2))
    with pytest.raises(TypeCheckError):
        Rows().update(index, torch.zeros(2, 2))
    with pytest.raises(TypeCheckError):
        quantiles(np.zeros(3, dtype=np.float32))


def test_a_wrong_type_is_found():
    Estimate(1, 0.5, 2, 3)  # an int may stand for a float
    with pytest.raises(TypeCheckError):
        widened("1")
    with pytest.raises(TypeCheckError):
        LayerPlan.parse(7, 3)


def test_a_wrong_field_is_found():
    with pytest.raises(TypeCheckError):
        Estimate(0.5, 0.1, None, 3)


@pytest.mark.parametrize("hint", [Float[np.ndarray, "N"], dict[str, list[Float[torch.Tensor, "N D"] | None]]])
def test_a_shape_is_seen_wherever_it_stands(hint):
    assert is_shaped(hint)
    assert not is_shaped(dict[str, np.ndarray | torch.Tensor])
