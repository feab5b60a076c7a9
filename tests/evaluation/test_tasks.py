import json

import pytest
import reasoning_gym

from midblock.base import MidblockError, Silent
from midblock.data import load_dataset
from midblock.evaluation import TASKS, Subject, TaskSettings, open_task
from midblock.evaluation.task import items_of


@pytest.fixture(scope="module")
def subject(pico, tokenizer):
    return Subject("base", pico("llama"), tokenizer)


@pytest.fixture
def rows(tmp_path):
    def write(*lines):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(file)

    return write


@pytest.mark.parametrize("name", ["gsm_symbolic", "chain_sum"])
def test_a_builtin_task_asks_the_very_questions_of_the_dataset(name):
    task = open_task(name, 6, seed=3)
    examples = load_dataset(f"builtin:{name}", num_samples=6, seed=3)
    assert [item.example for item in task.items] == list(examples)
    assert [item.id for item in task.items] == [item.id for item in open_task(f"reasoning_gym:{name}", 6, seed=3).items]
    assert (task.clusters is not None) == (len({example.question for example in examples} - {""}) in range(1, 6))


@pytest.mark.parametrize(("name", "kind"), [("chain_sum", "share"), ("gcd", "mean"), ("spell_backward", "mean")])
def test_answers_are_given_to_the_sets_own_scorer(name, kind, subject):
    task = open_task(name, 5)
    settings = TaskSettings(max_new_tokens=4)
    scored = {each.item: each for each in task.run(subject, task.items, settings, Silent())}
    assert (task.kind, scored.keys()) == (kind, {item.id for item in task.items})
    made = reasoning_gym.create_dataset(name, size=1, seed=0)
    for item in task.items:
        each = scored[item.id]
        marks = (
            0.0 if each.answer is None else made.score_answer(each.answer, {"answer": each.expected, "metadata": {}})
        )
        assert each.value == (float(marks == 1) if kind == "share" else marks)


def test_a_right_answer_has_full_marks_and_one_that_breaks_the_scorer_none(monkeypatch):
    task = open_task("prime_factorization", 2)
    score = task.run.__self__.score
    assert score(task.items[0], task.items[0].example.completion) == (1.0, "")
    assert score(task.items[0], None) == (0.0, "")
    value, failed = score(task.items[0], "no numbers here")
    assert value == 0.0
    assert "ValueError" in failed


def test_a_set_that_shows_no_answer_is_scored_all_the_same():
    task = open_task("graph_color", 2)
    assert task.run.__self__.expected(task.items[0]) == ""
    assert task.run.__self__.score(task.items[0], "{}")[0] < 0.1


def test_gsm8k_reads_marked_answers_alone_unless_asked(rows):
    file = rows(*({"question": f"{n} and {n}?", "answer": f"so\n#### {2 * n},000"} for n in range(1, 5)))
    task = open_task(f"gsm8k:{file}", 3)
    assert (task.rule, task.metric, task.kind) == ("marked", "exact_match", "share")
    answered = task.run.__self__
    item = task.items[0]
    assert answered.expected(item).endswith("000")
    assert answered.score(item, answered.expected(item)) == (1.0, "")
    assert open_task(f"gsm8k:{file}", 3, settings=TaskSettings(reader="last_number")).rule == "last_number"
    # what the items are called does not depend on where their file lies
    assert {item.id for item in task.items} <= {item.id for item in items_of("gsm8k", load_dataset(file).examples)}


def test_the_same_question_twice_is_two_items(rows):
    file = rows(*[{"question": "1 and 1?", "answer": "2"}] * 3)
    task = open_task(f"exact_match:{file}")
    assert len({item.id for item in task.items}) == 3
    assert task.clusters.count == 1  # but one piece of evidence
    assert task.rule == "first_line"


def test_what_does_not_stop_is_counted_as_cut(subject):
    task = open_task("chain_sum", 6)
    scored = list(task.run(subject, task.items, TaskSettings(max_new_tokens=2), Silent()))
    stop = subject.tokenizer.eos_token_id
    assert all(each.cut == (stop not in subject.tokenizer(each.output)["input_ids"]) for each in scored)
    assert any(each.cut for each in scored)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gsm_symbol", "unknown task 'gsm_symbol' (did you mean 'gsm_symbolic'?)"),
        ("gsm8", "did you mean 'gsm8k'?"),
        ("reasoning_gym:chainsum", "did you mean 'chain_sum'?"),
        ("exactmatch:sums.jsonl", "unknown task 'exactmatch' (did you mean 'exact_match'?)"),
        ("???", "chain_sum, exact_match"),
        ("exact_match", "wants a dataset"),
        ("exact_match:nothing.jsonl", "nothing.jsonl"),
    ],
)
def test_an_unknown_task_is_told_with_the_nearest(name, said):
    with pytest.raises(MidblockError) as error:
        open_task(name, 2)
    assert said in str(error.value)


def test_a_task_without_answers_is_refused(rows):
    file = rows(*({"prompt": f"Say {n}."} for n in range(4)))
    with pytest.raises(MidblockError, match="4 of 4 samples have no answer"):
        open_task(f"exact_match:{file}")


def test_answers_that_the_rule_cannot_read_are_refused(rows):
    file = rows(*({"question": "Who?", "answer": name} for name in ("Ann", "Bob")))
    with pytest.raises(MidblockError, match="last_number reads no answer from 'Ann'"):
        open_task(f"exact_match:{file}", settings=TaskSettings(reader="last_number"))
    with pytest.raises(MidblockError, match="did you mean 'last_number'"):
        open_task(f"exact_match:{file}", settings=TaskSettings(reader="lastnumber"))


def test_every_name_of_the_table_opens_or_says_what_it_wants():
    assert {"gsm8k", "exact_match", "reasoning_gym"} <= set(TASKS)
