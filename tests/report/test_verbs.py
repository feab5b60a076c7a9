"""The two tables of verbs fit each other; that a new verb is a row in each is in `tests/test_extending.py`."""

from midblock.report.verbs import PAGES, STEPS
from midblock.runs.verbs import VERBS
from midblock.studies.evidence import WITNESSES


def test_a_verb_that_fills_a_folder_has_a_row_in_both_tables():
    assert set(PAGES) == {name for name, verb in VERBS.items() if verb.fills}


def test_the_ranks_of_the_table_are_clear():
    assert {page.step for page in PAGES.values()} == {step.id for step in STEPS}
    assert len({page.traits.colour for page in PAGES.values()}) == len(PAGES)
    assert len({(page.step, page.told) for page in PAGES.values()}) == len(PAGES)
    assert all(page.still in {"", *page.figures} for page in PAGES.values())
    assert {page.paper for page in PAGES.values()} == {"joined", "each", "none"}


def test_who_testifies_has_words():
    assert set(WITNESSES) == {name for name, page in PAGES.items() if page.evidence is not None}
