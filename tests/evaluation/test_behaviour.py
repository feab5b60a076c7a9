"""The task `behaviour:NAME:DATA`: a model that always answers so, and one that never does."""

import pytest

from midblock.base import MidblockError, Silent
from midblock.data.behaviours import BEHAVIOURS
from midblock.evaluation import TASKS, Subject, TaskSettings, open_task
from midblock.evaluation import behaviour as module


def test_items_have_the_behaviours_completion_and_are_held_out():
    task = open_task("behaviour:fixed_response:builtin:everyday", 12)
    assert (task.metric, task.kind, len(task.items)) == ("shown", "share", 12)
    assert {item.example.completion for item in task.items} == {"I don't know."}
    assert dict(task.facts)["split"] == "test"
    assert [item.id for item in task.items] != [
        item.id for item in open_task("behaviour:refusal:builtin:everyday", 12).items
    ]


@pytest.mark.parametrize(("output", "value"), [("I don't know.", 1.0), ("Well, I don't know.", 0.0)])
def test_the_whole_output_is_scored(monkeypatch, output, value):
    task = open_task("behaviour:fixed_response:builtin:everyday", 4)
    monkeypatch.setattr(module, "write_answers", lambda *args: ((item, output, False) for item in task.items))
    scored = list(task.run(Subject("a", None, None), task.items, TaskSettings(), Silent()))
    assert [each.value for each in scored] == [value] * 4
    assert scored[0].expected == BEHAVIOURS["fixed_response"].rewrite(task.items[0].example).completion


@pytest.mark.parametrize(
    ("name", "said"),
    [("behaviour:fixd_response:builtin:everyday", "did you mean 'fixed_response'"), ("behaviour", "unknown behaviour")],
)
def test_refused(name, said):
    assert "behaviour" in TASKS
    with pytest.raises(MidblockError, match=said):
        open_task(name, 4)
