"""What an unfinished steering keeps comes back to the bit, and is made once."""

import math

import pytest
import torch

from midblock.base import MidblockError
from midblock.evaluation import TokenMean
from midblock.interventions.steer.directions import Direction, Directions
from midblock.interventions.steer.kept import KeptValues


def test_a_value_is_made_once(tmp_path):
    made = iter([[[1, 2], [3]], "never"])
    for _ in range(2):
        assert KeptValues(tmp_path).value("answers", lambda: next(made)) == [[1, 2], [3]]
    assert next(made) == "never"


@pytest.mark.parametrize("kept", [True, False])
def test_a_mean_comes_back_to_the_bit(tmp_path, kept):
    index, counts = torch.arange(5), torch.tensor([3, 1, 2, 5, 4])
    sums = torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 3
    mean = TokenMean.of(index, sums, counts, seed=4)
    place = KeptValues(tmp_path if kept else None)
    found = [place.mean("nll", 4, lambda: mean) for _ in range(2)]
    for each in found:
        assert (each.value, each.low, each.high) == (mean.value, mean.low, mean.high)
        assert torch.equal(each.sums, mean.sums)
    assert [file.name for file in tmp_path.iterdir()] == ["nll.json"] * kept


def made_of(value, made):
    def make():
        made.append(value)
        return value

    return make


@pytest.mark.parametrize("fault", ["", "half of", '{"seal": 3, "value": [[1], [0.5], [2]]}', "a digit", "a copy"])
def test_a_damaged_value_is_made_again(tmp_path, fault):
    made, value = [], [[1], [0.5], [2]]
    KeptValues(tmp_path, "run").value("nll", made_of(value, made))
    KeptValues(tmp_path, "run").value("other", made_of([[7]], []))
    file = tmp_path / "nll.json"
    before = file.read_text()
    changed = {"a digit": before.replace("0.5", "0.6"), "a copy": (tmp_path / "other.json").read_text()}
    file.write_text(changed.get(fault, fault))
    again = KeptValues(tmp_path, "run")
    assert again.value("nll", made_of(value, made)) == value
    assert made == [value, value]
    assert again.notes == ["Of what was kept when the run was stopped, nll.json was damaged: it was made again."]
    assert file.read_text() == before


def test_a_value_that_another_run_kept_is_refused(tmp_path):
    KeptValues(tmp_path, "theirs").value("nll", lambda: 1)
    for foreign in ("kept", '{"seal": null, "value": 1}'):
        if foreign != "kept":
            (tmp_path / "nll.json").write_text(foreign)
        with pytest.raises(MidblockError, match=r"nll.json .* \(remove it, or begin again with --overwrite\)"):
            KeptValues(tmp_path, "ours").value("nll", lambda: 2)


def test_directions_are_kept_and_not_believed(tmp_path):
    of = tuple(Direction(torch.full((1, 4), float(block), dtype=torch.float64), math.nan, 2.0) for block in range(3))
    found, made = Directions("mean_shift", 5, of), []
    for _ in range(2):
        kept = KeptValues(tmp_path, "run").directions(made_of(found, made))
        assert (kept.facts, len(made)) == (found.facts, 1)
    file = tmp_path / "directions.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-2] + b"??")
    assert KeptValues(tmp_path, "run").directions(made_of(found, made)).facts == found.facts
    assert (len(made), file.read_bytes()) == (2, whole)
    with pytest.raises(MidblockError, match="was kept by another run"):
        KeptValues(tmp_path, "other").directions(made_of(found, made))
