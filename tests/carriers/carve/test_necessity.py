"""The necessity table on planted answers: the true carrier is found necessary and sufficient, others are not."""

from dataclasses import replace

import pytest
import torch

from midblock.base import Silent
from midblock.carriers.carve.candidates import candidates_of, groups_of
from midblock.carriers.carve.contenders import Candidate, Trio, contenders_of
from midblock.carriers.carve.measures import BEHAVIOUR, KL, LOSS, divergence_measure, loss_measure, task_measure
from midblock.carriers.carve.measuring import measure_all
from midblock.carriers.carve.settings import NecessitySettings
from midblock.carriers.carve.table import necessity_frame, necessity_rows
from midblock.carriers.carve.verdicts import NO, NOTHING, UNTOLD, YES, headline_of, verdicts_of
from midblock.checkpoints import Carrier, CarrierConfig, Entries
from midblock.data import encode, load_dataset
from midblock.evaluation import TaskSettings, open_task

from .conftest import BLOCK, UNIT, WRITTEN

SETTINGS = NecessitySettings(tuned="sft", behaviour="fixed_response", random_draws=2)
ASKING = TaskSettings(max_new_tokens=3, batch_tokens=1 << 14)


@pytest.fixture(scope="module")
def task():
    return open_task("behaviour:fixed_response:builtin:everyday", 16)


@pytest.fixture(scope="module")
def measures(planted, task):
    completions = encode(task.examples, planted.tokenizer, add_eos=True)
    elsewhere = encode(load_dataset("builtin:elsewhere", num_samples=4), planted.tokenizer)
    return [
        task_measure(BEHAVIOUR, "Shows it", task, ASKING, planted.tokenizer, "raw"),
        loss_measure(completions, "fixed_response", 0),
        divergence_measure(elsewhere, planted.base, "builtin:elsewhere", 0),
    ]


def trio(planted, tuned=None):
    import copy

    return Trio(planted.base, copy.deepcopy(planted.base), tuned or planted.tuned)


def carrier_of(planted, on):
    """The tuned model's values where a hand-made choice of masks is on: by layer and group, which."""
    groups, parameters = groups_of(planted.base, planted.tuned), dict(planted.tuned.named_parameters())
    masks = {
        (layer, group.name): torch.isin(torch.arange(group.size), torch.tensor(on.get((layer, group.name), [])))
        for layer, several in groups.layers.items()
        for group in several
    }
    flat = groups.flat(masks)
    entries = {
        name: Entries.of(parameters[name], channels.kept(flat[channels.layer]))
        for name, channels in groups.channels.items()
    }
    held = {name: each for name, each in entries.items() if each.count}
    shapes = {name: tuple(parameters[name].shape) for name in held}
    return Carrier(CarrierConfig("start", "0" * 64, "llama", "sft", "1" * 64, shapes), held, masks)


@pytest.fixture(scope="module")
def true_carrier(planted):
    others = {(layer, group): [3, 5] for layer in range(3) for group in ("attn_read", "q")}
    return carrier_of(planted, {(BLOCK, "ffn_hidden"): [UNIT, 7], (BLOCK, "ffn_write"): [WRITTEN, 9], **others})


def judged(planted, measures, candidates, tuned=None):
    contenders = contenders_of(candidates)
    found, _ = measure_all(trio(planted, tuned), contenders, measures, None, ["a"], Silent())
    rows = necessity_rows(contenders, measures, found, 0)
    return rows, verdicts_of(rows, contenders, found, 0)


def test_a_planted_carrier_is_necessary_sufficient_and_special(planted, measures, true_carrier):
    candidates, _ = candidates_of(true_carrier, planted.base, planted.tuned, SETTINGS)
    rows, verdicts = judged(planted, measures, candidates)
    assert {each.question: each.answer for each in verdicts if each.candidate == "carrier"} == {
        "necessary": YES,
        "sufficient": YES,
        "special": YES,
    }
    rates = {row["contender"]: row["value"] for row in rows if row["measure"] == BEHAVIOUR}
    assert rates["base"] == rates["tuned without carrier"] == rates["random 2 alone"] == 0
    assert rates["tuned"] == rates["carrier alone"] == rates["tuned without random 1"] == 1
    assert rates["pruned alone"] == 1  # the planted entry is the largest of the change
    assert "necessary and sufficient" in (said := headline_of(verdicts, "fixed_response"))
    assert "random" not in said
    by = {(row["contender"], row["measure"]): row for row in rows}
    assert by["carrier alone", LOSS]["tuned_low"] < 1e-3
    assert by["tuned without carrier", LOSS]["tuned_low"] > 1
    assert by["base", KL]["value"] == pytest.approx(0, abs=1e-6)
    assert by["carrier alone", KL]["value"] > 0.1
    assert by["tuned without carrier", KL]["value"] < 0.1
    assert by["carrier alone", BEHAVIOUR]["base_p"] < 1e-3
    assert by["carrier alone", BEHAVIOUR]["entries"] == true_carrier.count
    frame = necessity_frame(rows)
    assert len(frame) == len(rows) == 3 * (2 + 2 * 4)


def test_a_carrier_that_a_random_one_equals_is_told_as_such(planted, measures, true_carrier):
    same = [
        Candidate(name, kind, true_carrier, 1, 1) for name, kind in (("carrier", "carrier"), ("random 1", "random"))
    ]
    _, verdicts = judged(planted, measures[:1], same)
    assert [(each.question, each.answer) for each in verdicts][2] == ("special", UNTOLD)
    said = headline_of(verdicts, "fixed_response")
    assert "necessary and sufficient" in said
    assert said.endswith("Whether a random carrier of its size would take away less, the evidence does not say.")


def test_a_trained_carrier_stands_beside_its_places_with_the_tuned_values(planted, measures, true_carrier):
    parameters = dict(planted.base.named_parameters())
    undone = {name: replace(each, values=each.taken(parameters[name])) for name, each in true_carrier.held.items()}
    trained = replace(true_carrier, held=undone)  # as if training under the masks had undone it
    candidates, _ = candidates_of(trained, planted.base, planted.tuned, replace(SETTINGS, rivals=False))
    assert [each.name for each in candidates] == ["carrier", "untrained carrier", "random 1", "random 2"]
    rows, verdicts = judged(planted, measures[:1], candidates)
    rates = {row["contender"]: row["value"] for row in rows}
    assert (rates["carrier alone"], rates["untrained carrier alone"]) == (0, 1)
    assert "tuned without untrained carrier" not in rates
    said = next(each for each in verdicts if each.candidate == "untrained carrier")
    assert (said.question, said.answer) == ("sufficient", YES)
    assert said.words.startswith("The carrier with the tuned model's own values is sufficient: alone")


def test_a_carrier_that_training_made_sufficient_is_told_as_such(planted, measures, true_carrier):
    nothing = carrier_of(planted, {(BLOCK, "ffn_hidden"): [4, 7], (BLOCK, "ffn_write"): [3, 9], (0, "q"): [1]})
    both = [
        Candidate(*2 * [name], each, 1, 1)
        for name, each in zip(("carrier", "untrained carrier"), (true_carrier, nothing), strict=True)
    ]
    said = headline_of(judged(planted, measures[:1], both)[1], "fixed_response")
    assert "necessary and sufficient" in said
    assert said.endswith("alone, it brings 100 % (0 % with the tuned model's own values).")


def test_channels_that_do_nothing_are_neither(planted, measures):
    candidate = carrier_of(planted, {(BLOCK, "ffn_hidden"): [4, 7], (BLOCK, "ffn_write"): [3, 9], (0, "q"): [1]})
    _, verdicts = judged(planted, measures[:1], [Candidate("carrier", "carrier", candidate, 1, 1)])
    assert [(each.question, each.answer) for each in verdicts] == [("necessary", NO), ("sufficient", NO)]
    assert "neither" in headline_of(verdicts, "fixed_response")


def test_where_nothing_was_taught_nothing_is_said(planted, measures, true_carrier):
    rows, verdicts = judged(
        planted, measures[:1], [Candidate("carrier", "carrier", true_carrier, 1, 1)], tuned=planted.base
    )
    assert {each.answer for each in verdicts} == {NOTHING}
    assert "nothing to carry" in headline_of(verdicts, "fixed_response")
    assert all(row["part"] != row["part"] for row in rows)


def test_the_models_are_what_they_were(planted, measures, true_carrier):
    three = trio(planted)
    before = [{name: value.clone() for name, value in model.named_parameters()} for model in (three.host, three.tuned)]
    contenders = contenders_of([Candidate("carrier", "carrier", true_carrier, 1, 1)])
    measure_all(three, contenders, measures[1:2], None, ["a"], Silent())
    for model, values in zip((three.host, three.tuned), before, strict=True):
        assert all(torch.equal(value, values[name]) for name, value in model.named_parameters())


def test_candidates_have_the_carriers_size(planted, true_carrier):
    candidates, notes = candidates_of(true_carrier, planted.base, planted.tuned, SETTINGS)
    assert [each.kind for each in candidates] == ["carrier", "random", "random", "pruned"]
    assert {each.entries for each in candidates[:3]} == {true_carrier.count}
    assert all(each.bytes <= true_carrier.nbytes for each in candidates)
    (note,) = notes  # no channel is shared
    assert "bytes hold no direction" in note


def test_stopped_and_gone_on_with_is_the_same(planted, measures, true_carrier, tmp_path):
    contenders = contenders_of([Candidate("carrier", "carrier", true_carrier, 1, 1)])
    whole, _ = measure_all(trio(planted), contenders, measures[:2], None, ["a"], Silent())

    class Once(Silent):
        """Killed when a third of the work is behind it."""

        def phase(self, title, total):
            done = 0.0

            def advance(amount):
                nonlocal done
                done += amount
                if done > total / 3:
                    raise KeyboardInterrupt

            return advance

    with pytest.raises(KeyboardInterrupt):
        measure_all(trio(planted), contenders, measures[:2], tmp_path, ["a"], Once())
    kept = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert kept
    again, notes = measure_all(trio(planted), contenders, measures[:2], tmp_path, ["a"], Silent())
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in kept} == kept
    assert not notes
    assert again.keys() == whole.keys()
    for key, marks in whole.items():
        assert (again[key].values == marks.values).all()


def test_too_few_prompts_leave_it_open(planted, measures, true_carrier, task):
    from dataclasses import replace

    few = task_measure(BEHAVIOUR, "", replace(task, items=task.items[:2]), ASKING, planted.tokenizer, "raw")
    _, verdicts = judged(planted, [few], [Candidate("carrier", "carrier", true_carrier, 1, 1)])
    assert {each.answer for each in verdicts} <= {UNTOLD, NOTHING}
