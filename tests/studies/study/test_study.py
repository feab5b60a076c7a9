"""A whole study on a pico model: what it leaves, that a resumed or killed one is the same, that a failure is told."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import midblock
from midblock.base import MidblockError
from midblock.studies.study.study import TrialsFailedError, study

HERE = {"backend": "here", "threads": 1}


@pytest.fixture(scope="module")
def made(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Two arms, two rates of which one is selected; the folder, and what the study gave."""
    folder = tmp_path_factory.mktemp("made")
    before = Path.cwd()
    os.chdir(model_folder)
    try:
        return folder / "out", study(chosen(), output_dir=folder / "out", **HERE)
    finally:
        os.chdir(before)


def chosen() -> dict[str, Any]:
    return {
        "base": "start",
        "data": "sums.jsonl",
        "tune": {"max_steps": 2, "max_length": 48, "device": "cpu", "save_steps": 0},
        "grid": {"layers": ["all", "010"], "learning_rate": [0.001, 0.03]},
        "select": "learning_rate",
        "validate": {"num_samples": 6, "tasks": "exact_match:other.jsonl"},
        "evaluate": {"tasks": ["exact_match:other.jsonl"], "num_samples": 8, "max_new_tokens": 2,
                     "reader": "first_line"},
        "advice": {"steps": 2, "num_samples": 6, "max_length": 48},
    }  # fmt: skip


def without_time(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop(columns=["seconds", "peak_memory_gb"])


def test_the_table_has_a_row_for_each_trial_and_task(made):
    folder, found = made
    frame = found.trials
    assert list(frame.columns) == [
        "trial", "arm", "layers", "learning_rate", "seed", "share", "chosen", "items", "task", "metric", "value", "low",
        "high", "n", "no_answer", "cut", "parameters", "peak_memory_gb", "seconds", "status", "error",
    ]  # fmt: skip
    assert frame.status.value_counts().to_dict() == {"done": 5, "not chosen": 2}  # the base; two tested of four
    tested = frame[frame["items"] == "test"]
    assert sorted(tested.arm) == ["010", "all", "base"]
    assert tested.value.between(0, 1).all()
    assert set(frame[frame["items"] == "validation"].n) == {6}
    assert (frame[frame.arm == "all"].parameters > frame[frame.arm == "010"].parameters.iloc[0]).all()
    assert pd.read_csv(folder / "trials.csv").trial.tolist() == frame.trial.tolist()


def test_every_trial_has_its_folder_and_files(made):
    folder, _ = made
    names = sorted(each.name for each in (folder / "trials").iterdir())
    assert names == ["010-lr0.001", "010-lr0.03", "all-lr0.001", "all-lr0.03", "base"]
    assert {"tuned.json", "validation.json", "trial.json", "trial.log"} <= {
        each.name for each in (folder / "trials" / names[0]).iterdir()
    }
    assert json.loads((folder / "run.json").read_text())["status"] == "done"


def test_the_summary_tells_arms_and_how_sure_it_is(made):
    _, found = made
    (task,) = found.summary["tasks"]
    assert [arm["arm"] for arm in task["arms"]] == ["all", "010"]
    assert sum(arm["probability_best"] for arm in task["arms"]) == pytest.approx(1)
    assert (task["seeds"], task["items"], found.summary["reference"]) == (1, 8, "all")
    assert [each["arm"] for each in task["comparisons"]] == ["010"]
    assert set(found.summary["selected"]) == {"all", "010"}


def test_recommend_and_its_rivals_are_scored_against_the_sweep(made):
    folder, found = made
    advice = found.summary["advice"]
    assert (advice["plans"], advice["ranked"]) == (["all", "010"], ["all", "010"])
    by_name = {each["adviser"]: each for each in advice["advisers"]}
    assert {"recommend", "uniform", "p1_middle", "gradient_norm", "one_minus_cka", "swap", "eva"} <= set(by_name)
    arms = {arm["arm"]: arm["value"] for arm in found.summary["tasks"][0]["arms"]}
    for each in by_name.values():
        assert each["regret"] == pytest.approx(max(arms.values()) - arms[each["picked"]])
    assert by_name["uniform"]["picked"] == "all"
    asked = json.loads((folder / "trials" / "base" / "advice.json").read_text())
    assert all(len(each["scores"]) == 3 for each in asked["advisers"])


def test_a_finished_study_is_read_back_and_another_one_refused(made, model_folder, monkeypatch):
    folder, found = made
    monkeypatch.chdir(model_folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    again = study(chosen(), output_dir=folder, resume=True, **HERE)
    pd.testing.assert_frame_equal(again.trials, found.trials, check_exact=True)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    with pytest.raises(MidblockError, match=r"probability: 0\.95 then, 0\.8 now"):
        study({**chosen(), "probability": 0.8}, output_dir=folder, resume=True, **HERE)


def test_a_failed_trial_is_told_and_the_rest_go_on(here, plan):
    """Rank 33 is more than a weight of 32 rows allows: only the model itself can say so."""
    plan["trials"] = [{"name": "wide", "layers": "010", "lora_r": 33}]
    with pytest.raises(TrialsFailedError, match="1 of 3 trials failed, wide first: rank 33 is larger") as raised:
        study(plan, output_dir="out", **HERE)
    assert "--resume tries them again" in str(raised.value)
    frame = pd.read_parquet("out/trials.parquet")
    assert frame.status.tolist() == ["done", "done", "done", "failed"]
    assert frame.error.iloc[-1].startswith("rank 33 is larger than model.layers.1.self_attn.")
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["headline"].endswith("One trial failed.")
    assert json.loads(Path("out/run.json").read_text())["status"] == "running"
    with pytest.raises(TrialsFailedError):
        study(plan, output_dir="out", resume=True, **HERE)


KILLED = """
import sys
from midblock.studies.study.study import study
study(sys.argv[1], output_dir="out", jobs=2, threads=1)
"""


def test_a_study_killed_on_its_way_goes_on_to_the_same(here, plan):
    """Processes of their own; the study is killed when the first trial has been tuned, and its trials go too."""
    whole = study(plan, output_dir="whole", **HERE)
    Path("study.yaml").write_text(json.dumps(plan))
    environment = {**os.environ, "PYTHONPATH": str(Path(midblock.__file__).parents[1])}
    running = subprocess.Popen([sys.executable, "-c", KILLED, "study.yaml"], env=environment)
    wait_for(lambda: list(Path("out").glob("trials/*/tuned.json")) or running.poll() is not None)
    running.send_signal(signal.SIGKILL)
    running.wait()
    left = {path: path.stat().st_mtime_ns for path in Path("out").glob("trials/*/*.json")}
    assert left
    wait_for(lambda: not workers_in(here))
    again = study(plan, output_dir="out", resume=True, **HERE)
    pd.testing.assert_frame_equal(without_time(again.trials), without_time(whole.trials), check_exact=True)
    done = [path for path in left if path.name != "trial.json"]
    assert {path: path.stat().st_mtime_ns for path in done} == {path: left[path] for path in done}


def wait_for(condition: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def workers_in(folder: Path) -> list[str]:
    """Processes that still work in a folder."""
    links = [Path(each) / "cwd" for each in Path("/proc").glob("[0-9]*")]
    found = []
    for link in links:
        try:
            if int(link.parent.name) != os.getpid() and link.resolve() == folder.resolve():
                found.append(link.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "slrm"}, "unknown backend 'slrm'"),
        ({"jobs": 0}, "jobs is 0; it must be 1 or more"),
        ({"ray_address": "auto"}, "ray_address is about another backend"),
        ({"job": 1}, "unknown option 'job'"),
    ],
)
def test_bad_options_are_one_line_and_nothing_is_written(here, plan, options, message):
    with pytest.raises(MidblockError) as raised:
        study(plan, output_dir="out", **options)
    assert message in str(raised.value)
    assert not Path("out").exists()


def test_a_dry_run_tells_the_plan_and_writes_nothing(here, plan):
    told: list[Any] = []
    assert study(plan, output_dir="out", dry_run=True, announce=lambda *each: told.extend(each)) is None
    planned, cost = told
    assert planned.described()[0] == "2 trials: 2 arms (all, 010)"
    assert (cost.trials, cost.steps, cost.answers) == (2, 6, 36)
    assert cost.seconds > 0
    assert not Path("out").exists()
