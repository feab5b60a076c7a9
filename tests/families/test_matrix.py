"""Every family × everything midblock does with a model: right, or refused in one line; else a failure.

What is expected stands in `expected.json`, and docs/families.md is made of it. After a change that is meant to change
it: `MIDBLOCK_WRITE_FAMILIES=1 pytest tests/families`, look at the difference, and say why. One family alone:
`pytest tests/families -k gemma3n_text`.
"""

import pytest

from .cells import CELLS
from .outcome import check
from .pair import Pair
from .zoo import changed, families, make


@pytest.fixture(scope="module", params=families())
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A family's pair, made once for all its cells."""
    base = make(request.param)
    return Pair.write(request.param, tmp_path_factory.mktemp("pair"), base, changed(base))


@pytest.mark.parametrize("cell", CELLS)
def test_cell(pair, cell):
    check(pair, cell, CELLS[cell])
