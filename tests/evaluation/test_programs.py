import sys

import pytest

from midblock.base import MidblockError, Silent
from midblock.evaluation.programs import read_code
from midblock.evaluation.task import Subject, TaskSettings
from midblock.evaluation.tasks import open_task

PROMPT = 'def add_one(x):\n    """One more."""\n'
BODY = "    return x + 1"
TEST = "def check(candidate):\n    assert candidate(2) == 3\n"
ROW = {"prompt": PROMPT, "canonical_solution": BODY, "entry_point": "add_one", "test": TEST}
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="programs are run on Linux alone")


@pytest.mark.parametrize(
    ("output", "code"),
    [
        (BODY, BODY),
        (f"{BODY}\n\ndef other():\n    pass", BODY + "\n"),
        (f"{BODY}\nprint(add_one(1))", BODY),
        (f"{BODY}\n\n\n# Test\nassert add_one(1)", BODY + "\n\n"),
        (f"    if x:\n    {BODY}\n{BODY}", f"    if x:\n    {BODY}\n{BODY}"),
        (f"{PROMPT}{BODY}\n\nprint(add_one(1))", f"\n{PROMPT}{BODY}\n"),
        (f"Sure!\nimport math\n\n{PROMPT}{BODY}", f"\nimport math\n\n{PROMPT}{BODY}"),
        (f"Sure:\n```python\n{PROMPT}{BODY}\n```\nIt adds one.", f"\n{PROMPT}{BODY}\n"),
        (f"Run\n```sh\nls\n```\nthen\n```\n{PROMPT}{BODY}\n```", f"\n{PROMPT}{BODY}\n"),
        (f"```\n{BODY}\n```", f"\n{BODY}\n"),
        (f"```python\n{PROMPT}{BODY}", f"\n{PROMPT}{BODY}\n"),
        ("", None),
        ("\n  \n", None),
        ("```python\n\n```", None),
    ],
)
def test_the_program_in_what_was_written(output, code):
    assert read_code(output, "add_one") == code


def test_code_is_run_where_it_is_allowed_alone(rows_file):
    with pytest.raises(MidblockError, match=r"runs programs that models write \(--allow-code lets it"):
        open_task(f"humaneval:{rows_file(ROW)}")


@linux
def test_problems_without_tests_are_refused(rows_file):
    path = rows_file(ROW, {**ROW, "test": ""})
    with pytest.raises(MidblockError, match=r"problem 1 has no 'test' to run"):
        open_task(f"humaneval:{path}", settings=TaskSettings(allow_code=True))


@linux
def test_a_model_that_knows_one_solution_of_three(pico, tokenizer, answered, example_set, fit, rows_file):
    leaves = {**ROW, "prompt": "import os\n", "canonical_solution": "os._exit(0)", "entry_point": "os"}
    path = rows_file(ROW, {**ROW, "test": TEST.replace("3", "4")}, leaves)
    settings = TaskSettings(allow_code=True, max_new_tokens=30)
    task = open_task(f"humaneval:{path}", settings=settings)
    assert (task.metric, task.kind, len({item.id for item in task.items})) == ("pass@1", "share", 3)
    model = pico("llama")
    fit(model, tokenizer, example_set(task.items[0].example, task.items[2].example), steps=40)
    scored = list(task.run(Subject("pico", model, tokenizer), task.items, settings, Silent()))
    assert [row.item for row in scored] == [item.id for item in task.items]
    assert [(row.value, row.answer, row.failed) for row in scored] == [
        (1.0, BODY, ""),
        (0.0, BODY, ""),
        (0.0, "os._exit(0)", "ended with exit code 0 before its tests were through"),
    ]
