"""The task `behaviour:NAME:DATA`; models that always answer so, and never, are asked in tests/carriers."""

import pytest

from midblock.base import MidblockError
from midblock.evaluation import TASKS, open_task


def test_items_have_the_behaviours_completion_and_are_held_out():
    task = open_task("behaviour:fixed_response:builtin:everyday", 12)
    assert (task.metric, task.kind, len(task.items)) == ("shown", "share", 12)
    assert {item.example.completion for item in task.items} == {"I don't know."}
    assert dict(task.facts)["split"] == "test"
    assert [item.id for item in task.items] != [
        item.id for item in open_task("behaviour:refusal:builtin:everyday", 12).items
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("behaviour:fixd_response:builtin:everyday", "did you mean 'fixed_response'"),
        ("behaviour", "the name of the behaviour is empty"),
    ],
)
def test_refused(name, said):
    assert "behaviour" in TASKS
    with pytest.raises(MidblockError, match=said):
        open_task(name, 4)
