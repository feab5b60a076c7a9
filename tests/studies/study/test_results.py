"""What trials left, read back: arms that lack a seed, trials that failed, the table, PEFT's rows, P1's numbers."""

import json
import math

import pandas as pd
import pytest

from midblock.base.frame_files import read_frame
from midblock.studies.study.peft_rows import peft_row
from midblock.studies.study.published import published
from midblock.studies.study.results import Result, read_result, scores_of
from midblock.studies.study.rounds import shorter
from midblock.studies.study.study_file import StudyFile
from midblock.studies.study.summary import summarize
from midblock.studies.study.table import frame_of, keys_of, read_table, rows_of, write_table
from midblock.studies.study.trials import trials_of

ITEMS = 40


def told(right, task="sums", general=False, higher=True):
    values = [1.0] * right + [0.0] * (ITEMS - right)
    return {
        "task": task, "metric": "exact_match", "kind": "share", "higher_is_better": higher, "general": general,
        "value": right / ITEMS, "low": 0.0, "high": 1.0, "n": ITEMS, "no_answer": 1, "cut": 2,
        "items": [str(item) for item in range(ITEMS)], "clusters": [None] * ITEMS, "values": values,
        "weights": [1.0] * ITEMS,
    }  # fmt: skip


TUNED = {"parameters": 100, "total_parameters": 1000, "blocks": [1], "total_blocks": 3, "layers": "1", "seconds": 2.0,
         "peak_memory_gb": 0.5, "steps": 3, "tokens": 64, "nll": {"first": 2.0, "last": 1.0},
         "artifact": "tune/adapter"}  # fmt: skip


def asked(*tasks):
    return Result({"tune": TUNED, "evaluate": {"tasks": list(tasks), "seconds": 1.0}})


@pytest.fixture
def study(plan):
    return StudyFile.of({**plan, "grid": {"layers": ["all", "010"], "seed": [0, 1]}})


def results(**more):
    base = Result({"evaluate": {"tasks": [told(4), told(30, "other", True)], "seconds": 1.0}})
    return {"base": base, **{name.replace("_", "-"): result for name, result in more.items()}}


def test_an_arm_that_lacks_a_seed_is_compared_on_those_it_has(study):
    trials = trials_of(study)
    found = results(all_seed0=asked(told(10)), all_seed1=asked(told(20)))
    found |= {"010-seed0": asked(told(30)), "010-seed1": Result(failed="out of memory")}
    scores = scores_of(trials, found, "sums")
    assert (scores.arms, scores.values.shape) == (("all", "010"), (2, 1, ITEMS))
    assert scores.means == pytest.approx([0.25, 0.75])
    del found["010-seed0"]
    assert scores_of(trials, found, "sums").arms == ("all",)
    assert scores_of(trials, {}, "sums") is None


def test_arms_without_a_common_seed_are_those_with_the_most(study):
    found = results(all_seed0=asked(told(10)), all_seed1=asked(told(20)))
    assert scores_of(trials_of(study), found | {"010-seed1": asked(told(30))}, "sums").values.shape[:2] == (2, 1)
    alone = results(all_seed0=asked(told(10))) | {"010-seed1": asked(told(30))}
    assert scores_of(trials_of(study), alone, "sums") is None


def whole(study):
    trials = trials_of(study)
    names = [trial.name for trial in trials]
    found = results(**{name.replace("-", "_"): asked(told(10 + 20 * name.startswith("0")), told(30, "other", True))
                       for name in names})  # fmt: skip
    return trials, names, found


def test_the_summary_finds_the_planted_arm(study):
    trials, names, found = whole(study)
    summary = summarize(study, trials, found, names, {}, "all")
    first, second = summary["tasks"]
    assert (first["best"], first["verdict"], second["best"]) == ("010", "010", None)
    assert "010 is best of 2 arms on sums: 75.0%" in summary["headline"]
    (compared,) = first["comparisons"]
    assert (compared["arm"], compared["verdict"]) == ("010", "better")
    assert compared["difference"] == pytest.approx(0.5)
    assert [each["difference"] for each in first["against_base"]] == pytest.approx([0.15, 0.65])
    assert [each["difference"] for each in second["against_base"]] == pytest.approx([0.0, 0.0])
    assert second["general"]
    assert json.dumps(summary, allow_nan=False)


def test_where_less_is_better_the_lower_score_wins(study):
    trials = trials_of(study)
    found = {name: asked(told(30 - 20 * name.startswith("0"), higher=False)) for name in (t.name for t in trials)}
    found["base"] = Result({"evaluate": {"tasks": [told(35, higher=False)], "seconds": 1.0}})
    (task,) = summarize(study, trials, found, [trial.name for trial in trials], {}, "all")["tasks"]
    arms = {arm["arm"]: arm for arm in task["arms"]}
    assert task["best"] == "010"
    assert arms["010"]["value"] == pytest.approx(0.25)
    assert arms["010"]["low"] < 0.25 < arms["010"]["high"]
    assert task["comparisons"][0]["difference"] == pytest.approx(-0.5)
    assert task["comparisons"][0]["low"] < task["comparisons"][0]["high"] < 0
    assert task["comparisons"][0]["verdict"] == "better"


def test_the_table_says_what_became_of_every_trial(study, tmp_path):
    trials, names, found = whole(study)
    found["010-seed1"] = Result(failed="=out of memory")
    del found["010-seed0"]
    keys = keys_of(trials)
    scouts = [shorter(trial, 0.25) for trial in trials]  # of which none has begun
    frame = frame_of(rows_of(trials, scouts, found, names[:2], {("010", ()): 0}, keys), keys)
    assert frame.status.tolist() == ["done"] * 6 + ["dropped", "failed"]
    assert frame.task.tolist() == ["sums", "other"] * 3 + ["", ""]
    assert frame.seed.tolist()[:3] == [pd.NA, pd.NA, 0]
    write_table(frame, tmp_path)
    pd.testing.assert_frame_equal(read_table(tmp_path), frame, check_dtype=False)
    assert "'=out of memory" in (tmp_path / "trials.csv").read_text()
    assert read_frame(tmp_path / "trials.parquet", ["error"]).error.iloc[-1] == "=out of memory"


def test_a_row_as_pefts_comparison_has_it(study, tmp_path):
    trials, names, found = whole(study)
    row = peft_row(study, trials[0], found[names[0]], found["base"], tmp_path)
    assert list(row) == ["run_info", "train_info", "meta_info"]
    assert row["run_info"]["train_config"]["optimizer_kwargs"] == {"lr": 0.01, "weight_decay": 0.0}
    assert row["train_info"]["num_trainable_params"] == 100
    assert row["train_info"]["accelerator_memory_max"] == 2**29
    (last,) = row["train_info"]["metrics"]
    assert (last["step"], last["test accuracy"], last["forgetting"]) == (3, 0.25, {"other": 0.0})
    failed = peft_row(study, trials[0], Result(failed="out of memory"), found["base"], tmp_path)
    assert (failed["train_info"]["status"], failed["run_info"]["error_msg"]) == ("failed", "out of memory")
    assert failed["train_info"]["metrics"] == []


@pytest.mark.parametrize(
    ("base", "data", "options", "theirs"),
    [
        ("allenai/OLMo-2-1124-7B", "gsm8k", {"layers": "01000"}, 0.375),
        ("allenai/OLMo-2-1124-7B@main", "gsm8k", {"layers": "all"}, 0.28),
        ("allenai/OLMo-2-1124-7B", "gsm8k", {"layers": "01110"}, None),
        ("allenai/OLMo-2-1124-7B", "gsm8k", {"layers": "01000", "loss": "dft"}, None),
        ("allenai/OLMo-2-1124-7B", "mmlu", {"layers": "01000"}, None),
        ("Qwen/Qwen2.5-7B", "gsm8k", {"layers": "01000"}, None),
    ],
)
def test_p1s_numbers_stand_beside_their_recipe_alone(base, data, options, theirs):
    assert published(StudyFile(base=base, data=data), "gsm8k", options) == theirs
    assert published(StudyFile(base=base, data=data), "chain_sum", options) is None


def test_a_folder_of_a_trial_that_has_not_begun(tmp_path):
    assert read_result(tmp_path) == Result()
    assert math.isclose(read_result(tmp_path).seconds, 0.0)
