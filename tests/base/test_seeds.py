import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from midblock.base import derive, generator

parts = st.lists(st.integers() | st.text(max_size=5), max_size=3)


def test_the_streams_stay_what_they_are():
    # Old figures rest on these numbers.
    assert derive(0) == 5254295370254170289
    assert derive(0, "bootstrap", 200) == 2872015496809999958
    assert generator(0, "jackknife").integers(1000, size=4).tolist() == [803, 643, 53, 847]


@given(st.integers(), parts, st.integers(), parts)
def test_every_part_of_the_purpose_counts(seed, purpose, other_seed, other_purpose):
    same = (seed, purpose) == (other_seed, other_purpose)
    assert (derive(seed, *purpose) == derive(other_seed, *other_purpose)) == same
    assert 0 <= derive(seed, *purpose) < 2**63


def test_the_spelling_of_a_purpose_is_not_ambiguous():
    assert len({derive(1, "ab"), derive(1, "a", "b"), derive(1, 1), derive(1, "1"), derive(11), derive(1)}) == 6


def test_generators_for_two_purposes_are_unrelated():
    one, other = (generator(0, purpose).standard_normal(5000) for purpose in ("views", "sample"))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.06
    assert np.array_equal(one, generator(0, "views").standard_normal(5000))
