import json

import pytest

from midblock.base import MidblockError, Silent
from midblock.data import Example
from midblock.evaluation.choices import OFFERS, encode_offered, offered_with
from midblock.evaluation.likelihood import log_likelihoods
from midblock.evaluation.task import Subject, TaskSettings
from midblock.evaluation.tasks import open_task

CHOICES = ["three apples", "She has é", "7", "3 + 4 = 7 apples in the end"]
ROWS = [
    {"question": f"How many apples does she have, {i}?", "choices": CHOICES[: 2 + i % 3], "answer": i % 2}
    for i in range(6)
]
HARNESS = """
task: pico_choices
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: %s
doc_to_choice: %s
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_bytes, aggregation: mean, higher_is_better: true}
"""
LETTERED = r'''"{{question}}{% for c in choices %}\n{{'ABCD'[loop.index0]}}. {{c}}{% endfor %}\nAnswer:"'''
PLAIN = r'"{{question}}\nAnswer:"'
LETTERS = '''"{{['A', 'B', 'C', 'D'][:choices|length]}}"'''


def run(task, subject, items=None, **settings):
    return list(task.run(subject, task.items if items is None else items, TaskSettings(**settings), Silent()))


@pytest.mark.parametrize(
    ("choices", "text", "offered", "metric"),
    [
        ("letters", LETTERED, LETTERS, "acc"),
        ("texts", PLAIN, "choices", "acc"),
        ("texts_per_byte", PLAIN, "choices", "acc_bytes"),
    ],
    ids=["letters", "texts", "texts_per_byte"],
)
def test_likelihoods_and_scores_are_lm_evals_own(pico, tokenizer, rows_file, tmp_path, choices, text, offered, metric):
    pytest.importorskip("lm_eval")
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    path, model = rows_file(*ROWS), pico("llama")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "pico.yaml").write_text(HARNESS % (path, text, offered))
    tasks = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False).load(["pico_choices"])
    tasks["tasks"]["pico_choices"].set_config("num_fewshot", 0)
    theirs = evaluate(lm=HFLM(pretrained=model, tokenizer=tokenizer), task_dict=tasks, bootstrap_iters=0)
    samples = theirs["samples"]["pico_choices"]
    task = open_task(f"mmlu:{path}", settings=TaskSettings(choices=choices))
    whole = [each for item in task.items for each in offered_with(item.example, texts=choices != "letters")]
    ours = log_likelihoods("pico", model, encode_offered(whole, tokenizer, "raw"))
    assert ours.tolist() == pytest.approx([each[0] for row in samples for each in row["filtered_resps"]], abs=1e-4)
    scored = run(task, Subject("pico", model, tokenizer))
    assert [row.value for row in scored] == [row[metric] for row in samples]
    assert 0 < sum(row.value for row in scored) < len(scored)


def test_the_known_answer_is_the_likeliest(pico, tokenizer, rows_file, fit, example_set):
    task = open_task(f"mmlu:{rows_file(*ROWS[:3])}")
    assert (task.metric, task.kind, task.rule) == ("acc", "share", "letters")
    model = pico("llama")
    fit(model, tokenizer, example_set(*(item.example for item in task.items)), steps=20)
    subject = Subject("pico", model, tokenizer)
    scored = run(task, subject)
    assert [(row.item, row.value, row.answer, row.expected) for row in scored] == [
        (item.id, 1.0, letter, letter) for item, letter in zip(task.items, "ABA", strict=True)
    ]
    assert run(task, subject, task.items[1:2]) == scored[1:2]


def test_where_there_are_fewer_than_wanted_all_are_asked(rows_file):
    path = rows_file(*ROWS)
    assert len(open_task(f"mmlu:{path}", 4).items) == 4
    task = open_task(f"mmlu:{path}", 200)
    assert [item.id for item in task.items] == [item.id for item in open_task(f"mmlu:{path}").items]
    assert task.notes == (f"mmlu:{path} has 6 items, all of which were asked (200 were wanted).",)


def test_parquet_holds_the_same_items(rows_file, tmp_path):
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame(ROWS).to_parquet(tmp_path / "rows.parquet")
    assert open_task(f"mmlu:{tmp_path / 'rows.parquet'}").items == open_task(f"mmlu:{rows_file(*ROWS)}").items


def test_of_a_chat_the_choice_alone_counts(chatty):
    example = Example("How many?", extra={"choices": json.dumps(["7", "3 + 4"])})
    sevens, sums = encode_offered(offered_with(example, texts=True), chatty, "chat")
    before = "<bos>user\nHow many?\nAnswer:<end>\n<bos>assistant\n"
    for request, choice in ((sevens, "7"), (sums, "3 + 4")):
        ids = list(request.input_ids)
        assert chatty.decode(ids[: request.answer_start]) == before
        assert chatty.decode(ids[request.answer_start :]) == choice


def test_letters_stand_below_a_list_and_texts_below_the_question():
    extra = {"choices": json.dumps(["x", "y"])}
    example = Example("Q?\nA. x\nB. y\nAnswer:", "B", separator=" ", extra=extra)
    assert [each.text for each in offered_with(example)] == [f"Q?\nA. x\nB. y\nAnswer: {letter}" for letter in "AB"]
    assert [each.text for each in offered_with(example, texts=True)] == ["Q?\nAnswer: x", "Q?\nAnswer: y"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Q?", "answer": "x"}, r"sample 0 offers no choices \(columns: question, choices"),
        ({"question": "Q?", "choices": ["x", " "], "answer": 0}, "sample 0 offers ' ', an empty choice"),
        ({"question": "Q?", "choices": ["x"] * 27, "answer": 26}, "27 choices; there are 26 letters for them"),
        ({"question": "Q?", "choices": ["x", "y"], "answer": 2}, "not the position of one of 2 choices"),
    ],
)
def test_what_offers_no_choice_is_refused(rows_file, row, message):
    with pytest.raises(MidblockError, match=message):
        open_task(f"mmlu:{rows_file(row)}")


def test_an_unknown_way_names_the_nearest(rows_file):
    with pytest.raises(MidblockError, match=r"'text' .*did you mean 'texts'"):
        open_task(f"mmlu:{rows_file(*ROWS)}", settings=TaskSettings(choices="text"))
    assert set(OFFERS) == {"letters", "texts", "texts_per_byte"}
