"""Scores, comparisons and the forgetting table from planted answers: a task whose models answer as the test says."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from midblock.base import Estimate, MidblockError, Silent
from midblock.data import Example
from midblock.evaluation import Scored, Subject, Task, TaskSettings
from midblock.evaluation.evaluate.asking import LEAST, Within, ask, rounds_of
from midblock.evaluation.evaluate.forgetting import FORGETTING, forgetting_row, mean_of, weight_drift
from midblock.evaluation.evaluate.headline import headline, notes_on
from midblock.evaluation.evaluate.tables import compare, comparison_rows, score_rows
from midblock.evaluation.task import items_of


def planted(name="sums", n=40, kind="share", better=True, clusters=0, run=None):
    examples = [Example(f"{name} {k}", "x", question=str(k % clusters) if clusters else "") for k in range(n)]
    return Task(name, "accuracy", kind, items_of(name, examples), run or (lambda *asked: iter(())), better)


def answers(task, values):
    return [Scored(item.id, float(value)) for item, value in zip(task.items, values, strict=True)]


def rows_of(task, **values):
    given = {(model, task.name): answers(task, each) for model, each in values.items()}
    return given, compare(list(values), [task], given, seed=0)


def test_better_and_worse_are_told_by_the_corrected_p_and_by_what_is_better():
    right = np.array([1.0] * 10 + [0.0] * 30)
    for better, word in ((True, "better"), (False, "worse")):
        task = planted(better=better)
        _, compared = rows_of(task, base=np.zeros(40), sft=right, copy=np.zeros(40))
        rows = {(row["first"], row["second"]): row for row in comparison_rows(compared)}
        assert rows["base", "sft"]["verdict"] == word
        assert rows["base", "copy"]["verdict"] == "the evidence does not say"
        assert rows["base", "sft"]["p_holm"] == pytest.approx(3 * 2 * 0.5**10)
        assert compared[0].gain.value == (0.25 if better else -0.25)


def test_many_comparisons_ask_for_more():
    """Six items alone decide one comparison, and none of several."""
    six = np.array([1.0] * 6 + [0.0] * 34)
    task = planted()
    for models, word in ((("base", "sft"), "better"), (("base", "sft", "copy"), "the evidence does not say")):
        values = {name: six if name == "sft" else np.zeros(40) for name in models}
        _, compared = rows_of(task, **values)
        rows = comparison_rows(compared)
        assert rows[0]["verdict"] == word
        assert rows[0]["detectable"] >= (6 if len(models) == 2 else 7) / 40


def test_scores_of_variants_have_the_interval_of_their_questions():
    task = planted(n=40, clusters=4)
    values = np.array([float(k % 4 < 2) for k in range(40)])
    given = {("base", task.name): answers(task, values)}
    (row,) = score_rows(["base"], [task], given, 0)
    assert (row["value"], row["n"], row["units"]) == (0.5, 40, 4)
    assert row["high"] - row["low"] > 0.8
    assert row["no_answer"] is None


def test_a_reference_is_compared_alone():
    task = planted()
    given, _ = rows_of(task, a=np.zeros(40), b=np.zeros(40), c=np.zeros(40))
    found = compare(["a", "b", "c"], [task], given, 0, reference="b")
    assert [(each.first, each.second) for each in found] == [("b", "a"), ("b", "c")]
    assert found[0].seen_from("a").found.difference == Estimate(
        -found[0].found.difference.value, -found[0].found.difference.high, -found[0].found.difference.low, 40
    )


def test_rounds_hold_every_item_once_the_longest_first():
    task = planted(n=150)
    rounds = rounds_of(task, TaskSettings(max_new_tokens=256, batch_tokens=8192))
    assert [len(each) for each in rounds] == [128, 22]
    assert sorted(item.id for each in rounds for item in each) == sorted(item.id for item in task.items)
    lengths = [len(item.example.prompt) for each in rounds for item in each]
    assert lengths == sorted(lengths, reverse=True)
    assert len(rounds_of(task, TaskSettings(max_new_tokens=256, batch_tokens=1))[0]) == LEAST


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda items: [Scored(items[0].id, 1.0)], "no score for the item"),
        (lambda items: [Scored(item.id, 1.0) for item in (*items, items[0])], "two scores"),
        (lambda items: [Scored(item.id, math.nan) for item in items], "the score nan"),
        (lambda items: [Scored(item.id, 0.5) for item in items], "the score 0.5"),
    ],
)
def test_a_task_that_scores_badly_is_told(given, said, pico, tokenizer):
    task = planted(n=3, run=lambda subject, items, settings, progress: iter(given(items)))
    with pytest.raises(MidblockError, match=said):
        ask(Subject("base", pico("llama"), tokenizer), task, task.items, TaskSettings(), Silent())


def test_progress_within_a_round_never_tells_more_than_the_round():
    heard = []
    part = Within(heard.append, 10)
    for _ in range(2):  # a task of two phases
        advance = part.phase("writing", 4)
        advance(3)
        advance(1)
    part.finish()
    assert sum(heard) == pytest.approx(10)


def test_gain_and_loss_are_means_over_tasks_whose_intervals_add_up():
    one, two = Estimate(0.2, 0.1, 0.4, 50), Estimate(0.0, -0.1, 0.1, 70)
    found = mean_of([one, two])
    assert (found.value, found.n) == (pytest.approx(0.1), 120)
    assert found.low == pytest.approx(0.1 - math.hypot(0.1, 0.1) / 2)
    assert found.high == pytest.approx(0.1 + math.hypot(0.2, 0.1) / 2)
    lost = mean_of([one], -1)
    assert (lost.value, lost.low, lost.high) == (-0.2, -0.4, -0.1)
    assert mean_of([]) is None


def test_targets_gain_and_the_others_lose():
    sums, words, text = planted("sums"), planted("words"), planted("text", kind="mean", better=False)
    first, second = np.zeros(40), np.array([1.0] * 20 + [0.0] * 20)
    given = {
        ("base", "sums"): answers(sums, first), ("sft", "sums"): answers(sums, second),
        ("base", "words"): answers(words, second), ("sft", "words"): answers(words, first),
        ("base", "text"): answers(text, first + 2.0), ("sft", "text"): answers(text, first + 9.0),
    }  # fmt: skip
    compared = compare(["base", "sft"], [sums, words, text], given, 0)
    row = forgetting_row("sft", compared, ["sums"], {"kl_general": Estimate(1.0, 0.5, 1.5, 9)}, None)
    assert tuple(row) == FORGETTING
    assert (row["gain"], row["loss"], row["kl_general"]) == (0.5, 0.5, 1.0)  # nats are no share
    assert math.isnan(row["kl_tasks"])
    assert math.isnan(row["drift"])
    assert math.isnan(forgetting_row("sft", compared, [], {}, 0.1)["loss"])


def test_drift_is_the_relative_change_of_all_weights(pico):
    base, moved = pico("llama"), pico("llama")
    assert weight_drift(base, moved) == 0.0
    with torch.no_grad():
        for weight in moved.parameters():
            weight.mul_(1.5)
    assert weight_drift(base, moved) == pytest.approx(0.5)
    assert weight_drift(base, pico("llama", num_hidden_layers=2)) is None


def test_headlines():
    def row(second="sft", difference=0.25, p=0.01, verdict="better"):
        ends = {"low": 0.1, "high": 0.4, "detectable": 0.2, "p_holm": p, "verdict": verdict}
        return {"task": "sums", "first": "base", "second": second, "difference": difference, **ends}

    said = "sft is better than base on sums: +0.250 (95 % interval +0.100 to +0.400)"
    assert headline([], [row()]) == said
    unclear = row("copy", 0.3, 0.4, "the evidence does not say")
    assert headline([], [unclear, row()]) == f"{said}; 1 of 2 comparisons are decided"
    assert headline([], [unclear]).startswith("The evidence does not say which model is better on sums: +0.300")
    assert "only 0.200 or more would have been found in four of five runs" in headline([], [unclear])
    alone = {"model": "base", "task": "sums", "metric": "exact_match", "value": 0.5, "low": 0.4, "high": 0.6}
    assert headline([alone], []) == "base: exact match 0.500 (0.400 to 0.600) on sums"
    few = {"low": math.nan, "high": math.nan}
    assert headline([alone | few], []) == "base: exact match 0.500 on sums"
    assert headline([], [unclear | few]).endswith(
        "+0.300, with too few items for an interval; only 0.200 or more would have been found in four of five runs"
    )


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("The answer is 11.", True),
        ("11", False),  # right by the rule: its value is 1
        ("It is 112, or -11, or 1.11, or 11.5.", False),
        ("No idea", False),
    ],
)
def test_right_answers_among_other_words_are_told(output, told):
    task = replace(planted(n=8), generates=True, rule="first_line")
    value = float(output == "11")
    given = {("base", "sums"): [Scored(item.id, value, 1.0, output, output, "11") for item in task.items]}
    notes = notes_on(score_rows(["base"], [task], given, 0), [task], given, limit=9)
    assert any("8 of 8 outputs hold the expected answer among other words" in note for note in notes) == told
