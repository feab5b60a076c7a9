import copy
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("lm_eval")

from midblock.base import MidblockError, Silent
from midblock.evaluation.task import Subject, TaskSettings
from midblock.evaluation.tasks import open_task

ROWS = [{"q": f"How many apples, {i}?", "options": ["three apples", "7", "é"], "right": i % 3} for i in range(7)]
HEAD = "task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
METRIC = "  - {metric: %s, aggregation: %s, higher_is_better: %s}\n"
KINDS = {
    "pico_choice": "output_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: options\n"
    "doc_to_target: right\nmetric_list:\n"
    + METRIC % ("acc", "mean", "true")
    + METRIC % ("acc_norm", "mean", "true")
    + METRIC % ("mcc", "matthews_corrcoef", "true"),
    "pico_text": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: q\nmetric_list:\n"
    + METRIC % ("word_perplexity", "weighted_perplexity", "false")
    + METRIC % ("bits_per_byte", "bits_per_byte", "false"),
    "pico_write": "output_type: generate_until\ndoc_to_text: q\ndoc_to_target: '7'\n"
    "generation_kwargs: {until: ['\\n'], max_gen_toks: 4}\nmetric_list:\n"
    + METRIC % ("exact_match", "mean", "true")
    + "filter_list:\n  - {name: found, filter: [{function: regex, regex_pattern: '(7)'}, {function: take_first}]}\n",
}  # fmt: skip


@pytest.fixture
def settings(tmp_path, rows_file):
    data = rows_file(*ROWS)
    for name, rest in KINDS.items():
        (tmp_path / f"{name}.yaml").write_text(HEAD.format(name=name, data=data) + rest)
    away = "task: pico_away\ndataset_path: nobody/nothing\ntest_split: test\ndoc_to_text: q\ndoc_to_target: q\n"
    (tmp_path / "pico_away.yaml").write_text(away)
    choice = (tmp_path / "pico_choice.yaml").read_text()
    for name, line in {"pico_again": "", "pico_unsafe": "unsafe_code: true\n"}.items():
        (tmp_path / f"{name}.yaml").write_text(line + choice.replace("task: pico_choice", f"task: {name}"))
    (tmp_path / "groups.yaml").write_text("group: pico_group\ntask: [pico_choice, pico_again]\n")
    (tmp_path / "mixed.yaml").write_text("group: pico_mixed\ntask: [pico_choice, pico_text]\n")
    return TaskSettings(include_path=str(tmp_path))


@pytest.fixture
def subject(pico, tokenizer):
    return Subject("pico", pico("llama"), tokenizer)


def run(task, subject, items=None):
    return list(task.run(subject, task.items if items is None else items, TaskSettings(), Silent()))


def test_its_samples_are_our_rows(settings, subject, capfd):
    task = open_task("lm_eval:pico_choice", settings=settings)
    assert (task.metric, task.kind, task.higher_is_better, task.at_once) == ("acc", "share", True, True)
    assert len({item.id for item in task.items}) == len(ROWS)
    rows = {row.item: row for row in run(task, subject)}
    for item, asked in zip(task.items, ROWS, strict=True):
        ids = [subject.tokenizer(f"{asked['q']} {option}")["input_ids"] for option in asked["options"]]
        start = len(subject.tokenizer(asked["q"])["input_ids"])
        values = [_log_likelihood(subject.model, each, start) for each in ids]
        best = values.index(max(values))
        row = rows[item.id]
        assert (row.answer, row.expected) == (asked["options"][best], asked["options"][asked["right"]])
        assert row.value == float(best == asked["right"])
    assert capfd.readouterr() == ("", "")
    some = [task.items[5], task.items[2]]
    assert {row.item: row for row in run(task, subject, some)} == {item.id: rows[item.id] for item in some}


def test_a_group_is_all_items_of_its_tasks(settings, subject):
    task = open_task("lm_eval:pico_group", settings=settings)
    assert len({item.id for item in task.items}) == 2 * len(ROWS)
    rows = {row.item: row.value for row in run(task, subject)}
    alone = {row.item: row.value for row in run(open_task("lm_eval:pico_again", settings=settings), subject)}
    assert {item: rows[item] for item in alone} == alone
    assert sum(rows.values()) == 2 * sum(alone.values())


def test_a_draw_is_of_the_same_items_for_all(settings):
    whole = {item.id for item in open_task("lm_eval:pico_choice", settings=settings).items}
    drawn = [open_task("lm_eval:pico_choice", 3, 1, settings=settings) for _ in range(2)]
    assert [item.id for item in drawn[0].items] == [item.id for item in drawn[1].items]
    assert len(drawn[0].items) == 3
    assert {item.id for item in drawn[0].items} < whole
    more = open_task("lm_eval:pico_choice", 8, settings=settings)
    assert {item.id for item in more.items} == whole
    assert more.notes == ("lm_eval:pico_choice has 7 items, all of which were asked (8 were wanted).",)


def test_perplexity_is_a_mean_over_words_or_bytes(settings, subject):
    words = open_task("lm_eval:pico_text", settings=settings)
    assert (words.metric, words.kind, words.higher_is_better) == ("word_perplexity.nll", "mean", False)
    bits = run(open_task("lm_eval:pico_text@bits_per_byte", settings=settings), subject)
    for row, bit, asked in zip(run(words, subject), bits, ROWS, strict=True):
        assert (row.weight, bit.weight) == (4, len(asked["q"].encode()))
        assert bit.value * bit.weight * math.log(2) == pytest.approx(row.value * row.weight)
    ids = [subject.tokenizer.bos_token_id, *subject.tokenizer(ROWS[0]["q"])["input_ids"]]
    first = run(words, subject, words.items[:1])[0]
    assert first.value * first.weight == pytest.approx(-_log_likelihood(subject.model, ids, 1), abs=1e-3)


def test_its_perplexity_is_ours(settings, subject, rows_file):
    theirs = run(open_task("lm_eval:pico_text", settings=settings), subject)
    ours = run(open_task(f"perplexity:{rows_file(*({'text': row['q']} for row in ROWS))}"), subject)
    sums = [row.value * row.weight for row in ours]
    assert [row.value * row.weight for row in theirs] == pytest.approx(sums, abs=1e-3)


def test_what_is_written_and_what_is_read_from_it(settings, subject):
    task = open_task("lm_eval:pico_write@exact_match/found", settings=settings)
    assert (task.metric, task.kind, task.generates, task.rule) == (
        "exact_match",
        "mean",
        True,
        "lm-eval: exact_match/found",
    )
    for row in run(task, subject):
        assert (row.answer, row.value) == (("7", 1.0) if "7" in row.output else (None, 0.0))
        assert (row.expected, row.output != "") == ("7", True)


def test_a_head_that_is_tied_by_the_configs_word_alone_stays(settings, pico, tokenizer):
    model = pico("llama_tied")
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight + 1.0)
    before, own = copy.deepcopy(model.state_dict()), copy.deepcopy(tokenizer.special_tokens_map)
    run(open_task("lm_eval:pico_choice", settings=settings), Subject("pico", model, tokenizer))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert "tie_weights" not in vars(model)
    assert tokenizer.special_tokens_map == own


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lm_eval:", "wants a name"),
        ("lm_eval:pico_away", "lm_eval:pico_away: lm-eval fails: .*nobody/nothing"),
        ("lm_eval:pico_choice@acc_nrm", r"unknown metric of pico_choice 'acc_nrm' \(did you mean 'acc_norm'\?\)"),
        ("lm_eval:pico_choice@acc/some", "unknown filter of pico_choice 'some'"),
        ("lm_eval:pico_unsafe", "lm-eval would run what models write in pico_unsafe with no limits"),
        ("lm_eval:pico_mixed", "pico_text is scored by another metric"),
        ("lm_eval:pico_choice@mcc", r"mcc is no mean over items \(of this task: acc, acc_norm\)"),
    ],
)
def test_what_cannot_be_had_is_one_line(settings, name, message):
    with pytest.raises(MidblockError, match=message) as raised:
        open_task(name, settings=settings)
    assert "\n" not in str(raised.value)


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(MidblockError, match=r"there is no folder .* with tasks for lm-eval"):
        open_task("lm_eval:x", settings=TaskSettings(include_path=str(tmp_path / "nothing")))


def test_a_template_file_is_refused(settings, subject, tmp_path):
    (Path(tmp_path) / "own.jinja").write_text("x")
    other = Subject("pico", subject.model, subject.tokenizer, str(tmp_path / "own.jinja"))
    with pytest.raises(MidblockError, match="lm-eval takes no chat template from the file"):
        run(open_task("lm_eval:pico_choice", settings=settings), other)


def _log_likelihood(model, ids, start):
    with torch.no_grad():
        log_probs = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
    return sum(float(log_probs[place - 1, ids[place]]) for place in range(start, len(ids)))


def test_a_chat_template_is_the_tokenizers_own(settings, subject, chatty):
    task = open_task("lm_eval:pico_choice", settings=settings)
    rows = run(task, Subject("pico", subject.model, chatty, "chat"))
    assert {row.item for row in rows} == {item.id for item in task.items}
    before = "<bos>user\nHow many apples, 0?<end>\n<bos>assistant"
    start = len(chatty(before)["input_ids"])
    values = [
        _log_likelihood(subject.model, chatty(f"{before}\n{option}")["input_ids"], start)
        for option in ROWS[0]["options"]
    ]
    first = next(row for row in rows if row.item == task.items[0].id)
    assert first.answer == ROWS[0]["options"][values.index(max(values))]
