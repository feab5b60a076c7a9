"""A study's file: what is in it arrives, and what cannot be meant is one line."""

from pathlib import Path

import pytest
import yaml

from midblock.base import MidblockError
from midblock.studies.study.study_file import StudyFile

WHOLE = """
base: start
data: sums.jsonl
tune: {max_steps: 3}
grid: {layers: ["10000", "01000"], seed: [0, 1], learning_rate: [0.1, 0.2]}
select: learning_rate
validate: {num_samples: 8}
evaluate: {tasks: [chain_sum]}
"""


def read(text: str, tmp_path: Path) -> StudyFile:
    (tmp_path / "study.yaml").write_text(text)
    return StudyFile.read(tmp_path / "study.yaml")


def test_what_is_written_arrives_and_is_a_file_again(tmp_path):
    study = read(WHOLE, tmp_path)
    assert (study.base, study.select, study.grid["layers"]) == ("start", ("learning_rate",), ["10000", "01000"])
    assert (study.probability, study.halves, study.analyze) == (0.95, "none", None)
    again = read(yaml.safe_dump(study.as_config()), tmp_path)
    assert again == study
    assert study.with_halving().halves == "seeds"
    assert read(WHOLE.replace("seed: [0, 1]", "seed: [0]"), tmp_path).with_halving().halves == "steps"


@pytest.mark.parametrize(
    ("was", "is_", "message"),
    [
        ("base: start", "bse: start", "unknown key 'bse' (did you mean 'base'?)"),
        ("data: sums.jsonl", "", "names no data"),
        ('"10000"', "10000", "layers is the number 10000"),
        ('"01000"', "01000", "01000"),
        ('["10000", "01000"]', '"10000"', "layers is no list of values"),
        ("seed: [0, 1]", "seed: []", "seed is no list of values"),
        ("select: learning_rate", "select: rate", "key of the grid to select 'rate'"),
        ("select: learning_rate", "select: seed", "seed cannot be selected"),
        ("validate: {num_samples: 8}", "", "selects learning_rate and says nothing of `validate`"),
        ("select: learning_rate", "halving: sedes", "unknown halving 'sedes' (did you mean 'seeds'?)"),
        ("select: learning_rate", "probability: 0.5", "probability is 0.5"),
        ("select: learning_rate", "trials: {name: a}", "trials is no list of trials"),
        ("select: learning_rate", "trials: [{name: a, layers: 10}]", "layers is the number 10"),
        ("tune: {max_steps: 3}", "tune: [3]", "tune is no list of options"),
        ("select: learning_rate", "seed: yes", "seed is True"),
    ],
)
def test_bad_input_is_one_line(was, is_, message, tmp_path):
    assert was in WHOLE
    with pytest.raises(MidblockError) as raised:
        read(WHOLE.replace(was, is_), tmp_path)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_halving_wants_something_to_choose_by(tmp_path):
    study = read(WHOLE.replace("validate: {num_samples: 8}", "").replace("[0.1, 0.2]", "[0.1]"), tmp_path)
    with pytest.raises(MidblockError, match="halves and says nothing of `validate`"):
        study.with_halving()
