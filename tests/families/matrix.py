"""Every family × everything midblock does with a model: right, or refused in one line; else a failure.

What is expected stands in `expected.json`, and docs/families.md is made of it. After a change that is meant to change
it: `MIDBLOCK_WRITE_FAMILIES=1 pytest tests/families`, look at the difference, and say why. One family alone:
`pytest tests/families -k gemma3n_text`. Each file of tests has its share of the families, so that processes share them.
"""

from collections.abc import Callable

import pytest

from .cells import CELLS
from .outcome import check
from .pair import Pair
from .zoo import families


def share(first: str, last: str) -> Callable[[Pair, str], None]:
    """A test of all cells of the families whose names begin with these letters or those between."""
    names = [name for name in families() if first <= name[0] <= last]

    @pytest.mark.parametrize("cell", CELLS)
    @pytest.mark.parametrize("family_pair", names, indirect=True, scope="module")
    def test_cell(family_pair: Pair, cell: str) -> None:
        check(family_pair, cell, CELLS[cell])

    return test_cell
