"""A family's pair, made once for all its cells."""

from collections.abc import Iterator

import pytest
import transformers

from .pair import Pair
from .wrappers import WRAPPERS, make_wrapper, tuned_wrapper
from .zoo import changed, make


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


@pytest.fixture(scope="module")
def family_pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    base = make(request.param)
    return Pair.write(request.param, tmp_path_factory.mktemp("pair"), base, changed(base))


@pytest.fixture(scope="module")
def wrapper_pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    assert request.param in WRAPPERS
    base = make_wrapper(request.param)
    return Pair.write(request.param, tmp_path_factory.mktemp("pair"), base, tuned_wrapper(base))
