"""Every family × everything midblock does with a model: right, refused in one line, or a failure.

What is expected stands in `expected.json`, and docs/families.md is made of it. After a change that is meant to:
`MIDBLOCK_WRITE_FAMILIES=1 pytest tests/families`, look at the difference, and say why.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import transformers

from midblock.base import MidblockError

from .cells import CELLS
from .pair import Pair
from .table import WRITE, page, read, write
from .zoo import changed, families, make

DOCS = Path(__file__).parents[2] / "docs" / "families.md"


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


@pytest.fixture(scope="module", params=families())
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Pair]:
    """A family's name and its pair, made once for all its cells."""
    base = make(request.param)
    return request.param, Pair.write(tmp_path_factory.mktemp("pair"), base, changed(base))


@pytest.mark.parametrize("cell", CELLS)
def test_cell(pair, cell):
    family, made = pair
    found = outcome(made, cell)
    if WRITE:
        write(family, cell, found)
    else:
        assert found == expected().get(family, {}).get(cell)


def outcome(pair: Pair, cell: str) -> str:
    """`works`, or what midblock says when it refuses; anything else is a failure."""
    try:
        CELLS[cell](pair)
    except MidblockError as error:
        assert "\n" not in str(error)
        return str(error).replace(str(pair.folder), "…")
    return "works"


@cache
def expected() -> dict[str, dict[str, str]]:
    return read()


def test_the_page_says_what_is_expected():
    if WRITE:
        DOCS.write_text(page(read()), encoding="utf-8")
    assert DOCS.read_text(encoding="utf-8") == page(read())


def test_nothing_is_left_over():
    assert set(read()) == set(families())
