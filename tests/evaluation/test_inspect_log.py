import json
from datetime import UTC, datetime

import pytest

from midblock.data import Example, Message
from midblock.evaluation.inspect_log import write_inspect_log
from midblock.evaluation.task import Scored, Task, TaskSettings, items_of

STARTED = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
TURNS = (Message("system", "Count."), Message("user", "How many?"), Message("assistant", "7"))


@pytest.fixture
def task():
    examples = [Example("Count.\nHow many?", "7", TURNS), Example("And é?", "3", question="sums")]
    return Task(
        "gsm8k:some/file", "exact_match", "share", items_of("gsm8k", examples), lambda *of: iter(()), generates=True
    )


@pytest.fixture
def rows(task):
    first, second = (item.id for item in task.items)
    return [
        Scored(first, 1.0, output="#### 7", answer="7", expected="7"),
        Scored(second, 0.0, output="no", expected="3", cut=True),
    ]


def test_what_stands_in_it(task, rows, tmp_path):
    path = write_inspect_log(tmp_path, "a model/é", task, rows, TaskSettings(max_new_tokens=9), STARTED)
    assert path.name.startswith("2026-05-04T03-02-01+00-00_gsm8k-some-file_")
    log = json.loads(path.read_text(encoding="utf-8"))
    assert (log["version"], log["status"], log["eval"]["model"]) == (2, "success", "a model/é")
    assert log["eval"]["model_generate_config"] == {"max_tokens": 9, "temperature": 0.0}
    assert log["results"]["scores"][0]["metrics"]["exact_match"]["value"] == 0.5
    first, second = log["samples"]
    assert [turn["role"] for turn in first["messages"]] == ["system", "user", "assistant"]
    assert first["scores"]["exact_match"]["value"] == 1.0
    assert first["output"]["choices"][0]["stop_reason"] == "stop"
    assert second["output"]["choices"][0]["stop_reason"] == "max_tokens"
    assert (second["metadata"], second["scores"]["exact_match"]["answer"]) == ({"cluster": "sums"}, None)


def test_a_mean_is_weighted_and_what_is_not_done_is_said(tmp_path):
    items = items_of("perplexity", [Example("a b"), Example("c"), Example("d")])
    task = Task("perplexity:x", "nll", "mean", items, lambda *of: iter(()), higher_is_better=False)
    rows = [Scored(items[0].id, 1.0, 3.0), Scored(items[1].id, 5.0, 1.0)]
    log = json.loads(write_inspect_log(tmp_path, "m", task, rows, TaskSettings()).read_text())
    assert log["results"]["scores"][0]["metrics"]["nll"]["value"] == 2.0
    assert (log["status"], log["results"]["completed_samples"], log["results"]["total_samples"]) == ("cancelled", 2, 3)
    assert log["samples"][0]["output"]["choices"] == []


def test_a_later_one_takes_its_place(task, rows, tmp_path):
    write_inspect_log(tmp_path, "m", task, rows, TaskSettings(), STARTED)
    other = write_inspect_log(tmp_path, "n", task, rows, TaskSettings(), STARTED)
    later = write_inspect_log(tmp_path, "m", task, rows, TaskSettings(), STARTED.replace(year=2027))
    assert sorted(tmp_path.iterdir()) == sorted([other, later])


def test_inspect_reads_it(task, rows, tmp_path):
    inspect_log = pytest.importorskip("inspect_ai.log")
    path = write_inspect_log(tmp_path, "m", task, rows, TaskSettings(), STARTED)
    log = inspect_log.read_eval_log(str(path))
    assert (log.status, log.eval.task, log.eval.model) == ("success", task.name, "m")
    assert log.results.scores[0].metrics["exact_match"].value == 0.5
    assert [sample.scores["exact_match"].value for sample in log.samples] == [1.0, 0.0]
    assert log.samples[0].output.completion == "#### 7"
    assert len(inspect_log.list_eval_logs(str(tmp_path))) == 1
