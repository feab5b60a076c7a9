"""Training, validation and test share no prompt: planted overlaps are refused, items behind the test's are others."""

import pytest

from midblock.base import MidblockError
from midblock.data import load_dataset
from midblock.studies.study import exams as exams_of_studies
from midblock.studies.study.exams import check_apart, open_exam, validation_options
from midblock.studies.study.study_file import StudyFile
from midblock.studies.study.trials import trials_of

from .conftest import TESTED, TRAINED, sums


def exams(plan, **changes):
    study = StudyFile.of({**plan, **changes})
    validation = open_exam(validation_options(study), "validate") if study.validate is not None else None
    return study, trials_of(study), validation, open_exam(exams_of_studies.test_options(study), "evaluate")


def ids(exam):
    return {item.id for task in exam.tasks for item in task.items}


def test_validation_lies_behind_the_test(here, plan):
    found = exams(plan, validate={"num_samples": 8})
    assert (len(ids(found[2])), len(ids(found[3])), len(ids(found[2]) & ids(found[3]))) == (8, 12, 0)
    check_apart(*found)


def test_a_validation_that_shares_the_tests_prompts_is_refused(here, plan):
    found = exams(plan, validate={"num_samples": 12, "seed": 5})
    with pytest.raises(MidblockError, match=r"\d+ of 12 validation prompts are test prompts too, like 'She has"):
        check_apart(*found)


@pytest.mark.parametrize("place", ["evaluate", "validate"])
def test_a_test_or_validation_on_what_was_trained_on_is_refused(here, plan, place):
    (here / "mixed.jsonl").write_text(sums(TESTED) + sums(range(TRAINED[-1], TRAINED[-1] + 1)))
    tasks = {"tasks": ["exact_match:mixed.jsonl"], "num_samples": 25}
    changes = {"evaluate": {**plan["evaluate"], **tasks}} if place == "evaluate" else {"validate": {**tasks, "skip": 0}}
    found = exams(plan, **changes)
    found = (*found[:2], found[2], found[3]) if place == "evaluate" else (*found[:2], found[2], found[2])
    with pytest.raises(MidblockError, match=r"1 of 25 (test|validation) prompts are training prompts too"):
        check_apart(found[0], found[1], None, found[3])


def test_models_may_be_loaded_otherwise_than_for_tuning(here, plan):
    study = StudyFile.of({**plan, "evaluate": {**plan["evaluate"], "dtype": "float64"}, "validate": {"num_samples": 4}})
    assert exams_of_studies.loading_options(study.evaluate) == {"dtype": "float64"}
    for options in (exams_of_studies.test_options(study), validation_options(study)):
        assert "dtype" not in options
        open_exam(options, "evaluate")


def test_every_seeds_training_data_is_looked_at(here, plan):
    """Of 24 sums one seed draws some, another seed others: the asked one is only in the second's."""
    study = StudyFile.of(
        {**plan, "tune": {**plan["tune"], "num_samples": 3}, "grid": {"layers": ["all"], "seed": [0, 1]}}
    )
    drawn = [{each.prompt for each in load_dataset("sums.jsonl", num_samples=3, seed=seed)} for seed in (0, 1)]
    only = sorted(drawn[1] - drawn[0])[0]
    number = int(only.split()[2])
    (here / "asked.jsonl").write_text(sums(range(number, number + 1)) + sums(TESTED))
    test = open_exam({"tasks": ("exact_match:asked.jsonl",), "num_samples": 25, "reader": "first_line"}, "evaluate")
    check_apart(study, trials_of(study)[:1], None, test)
    with pytest.raises(MidblockError, match="1 of 25 test prompts are training prompts too"):
        check_apart(study, trials_of(study), None, test)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate": {"tasks": ["chain_sm"]}}, "evaluate: unknown task 'chain_sm' (did you mean 'chain_sum'?)"),
        ({"evaluate": {}}, "evaluate: no task is given"),
        ({"evaluate": {"tasks": ["chain_sum"], "num_sample": 3}}, "evaluate: unknown option 'num_sample'"),
        ({"validate": {"num_samples": None}}, "one of them takes all there is"),
        ({"validate": {"num_samples": 4, "skip": 24}}, "validate: exact_match:other.jsonl has no items"),
    ],
)
def test_bad_exams_are_one_line(here, plan, changes, message):
    with pytest.raises(MidblockError) as raised:
        exams(plan, **changes)
    assert message in str(raised.value)
