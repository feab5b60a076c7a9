"""A gate held against tables and run folders: what it must find, and what it must not let pass."""

import json
import math
from xml.etree import ElementTree

import pytest

import midblock
from midblock.analysis.gate.check import check_gate
from midblock.base import LayerRow, LayerTable, MidblockError

L = 4
NAN = math.nan


def rows_of(metric, values, model="sft", start=0, module="residual", half=NAN):
    places = enumerate(values, start=start)
    return [LayerRow(model, at, L, metric, v, 9, v - half, v + half, module=module) for at, v in places]


def table_of(*parts):
    return LayerTable.from_rows([row for part in parts for row in part])


CHANGE = rows_of("change_own", [0.1, 0.2, 0.3, 0.4], half=0.0625)
CKA = rows_of("cka", [0.95, 0.9, 0.8], start=-1)


def states(table, text):
    return [verdict.state for verdict in check_gate(table, text).verdicts]


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("change_own>0.4", "passed"),
        ("change_own>=0.4", "failed"),
        ("change_own>0.35", "failed"),
        ("change_own>>0.35", "passed"),
        ("change_own>>0.33", "failed"),
        ("change_own[0-2]>0.35", "passed"),
        ("change_own[2-3]>0.35", "failed"),
        ("change_own[0.5-1.0]>0.35", "failed"),
        ("change_own[0.0-0.5]>0.35", "passed"),
        ("change_own<0.1", "passed"),
        ("change_own<=0.1", "failed"),
        ("change_own<<0.1", "passed"),
        ("change_own<<0.17", "failed"),
        ("change_own@sft<0.2", "failed"),
        ("cka[-1]<0.9", "passed"),
        ("cka<0.9", "failed"),
    ],
)
def test_a_condition_fails_where_any_layer_is_beyond_its_bound(text, state):
    gate = check_gate(table_of(CHANGE, CKA), text)
    assert [verdict.state for verdict in gate.verdicts] == [state]
    assert gate.passed == (state == "passed")
    assert bool(gate.failures) == (state == "failed")


def test_the_line_names_the_worst_place_its_value_and_the_bound():
    gate = check_gate(table_of(CHANGE), "change_own[0-3]>0.15,change_own>>0.3")
    assert gate.failures == [
        "change_own[0-3]>0.15: change_own of sft at layer 3 is 0.4, above 0.15; the same at 2 more place(s)",
        "change_own>>0.3: change_own of sft at layer 3 is 0.4, all of its interval (0.3375 to 0.4625) above 0.3",
    ]
    (first, _) = gate.verdicts
    assert [place.layer for place in first.failing] == [3, 2, 1]
    assert first.passing[0].layer == 0


def test_a_value_just_beyond_is_told_with_all_its_digits():
    (line,) = check_gate(table_of(rows_of("cka", [0.50001])), "cka>0.5").failures
    assert "is 0.50001, above 0.5" in line


def test_every_tuned_model_must_pass_unless_one_is_named():
    table = table_of(CHANGE, rows_of("change_own", [0.9], "dpo", half=0.1), rows_of("gini", [0.7], "base"))
    table = table_of(table_rows(table), rows_of("gini", [0.2], "sft"), rows_of("gini", [0.2], "dpo"))
    assert states(table, "change_own>0.5,change_own@sft>0.5,change_own@dpo>0.5") == ["failed", "passed", "failed"]
    assert states(table, "gini>0.5,gini@base>0.5") == ["passed", "failed"]


def table_rows(table):
    return [LayerRow(r.model, r.layer, L, r.metric, r.value, r.n, r.low, r.high, r.dataset, r.module) for r in table]


def test_what_stands_for_the_base_alone_is_the_base_s():
    table = table_of(CKA, rows_of("cka.split_floor", [0.3], "base"))
    assert states(table, "cka.split_floor>0.2") == ["failed"]


def test_modules_of_weights():
    table = table_of(*(rows_of("delta_rel", [v], module=name) for name, v in (("q_proj", 0.3), ("block", 0.1))))
    assert states(table, "delta_rel>0.2,delta_rel:block>0.2,delta_rel:q_proj>0.2") == ["failed", "passed", "failed"]
    assert "of sft at layer 0 (q_proj) is 0.3" in check_gate(table, "delta_rel>0.2").failures[0]
    (error,) = check_gate(table, "delta_rel:q_prj>0.2").errors
    assert error == "delta_rel:q_prj>0.2: delta_rel has no module 'q_prj' (q_proj it has)"


@pytest.mark.parametrize("text", ["cka>0.99", "cka<0.01", "cka[1]>0.99", "cka>>0.99"])
def test_a_number_that_is_not_defined_does_not_pass(text):
    gate = check_gate(table_of(rows_of("cka", [0.5, NAN], half=0.1)), text)
    assert [verdict.state for verdict in gate.verdicts] == ["not defined"]
    assert not gate.passed
    assert "cka of sft at layer 1 is not defined, so nothing vouches for it" in gate.failures[0]


def test_an_interval_that_is_not_there_does_not_pass():
    gate = check_gate(table_of(CKA), "cka>>0.99")
    assert gate.failures[0].startswith("cka>>0.99: the interval of cka of sft at layer -1 is not defined")
    assert states(table_of(CKA), "cka>0.99") == ["passed"]


def test_a_place_that_fails_counts_more_than_one_that_is_not_defined():
    assert states(table_of(rows_of("cka", [0.5, NAN])), "cka<0.6") == ["failed"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gini>0.5", "gini was not measured"),
        ("change_own.null>0.5", "change_own.null was not measured (change_own was)"),
        ("change_own[-1-2]>0.5", "change_own of sft was not measured at layer -1"),
        ("change_own[2-L]>0.5", "change_own of sft was not measured at layer 4"),
        ("cka.no_sinks>0.5", "cka.no_sinks was not measured (cka was)"),
    ],
)
def test_what_was_not_measured_is_an_error(text, said):
    gate = check_gate(table_of(CHANGE, CKA), text)
    assert [verdict.state for verdict in gate.verdicts] == ["not measured"]
    assert (gate.passed, gate.failures, gate.errors) == (False, [], [f"{text}: {said}"])


def test_a_model_of_which_a_metric_was_not_measured_does_not_pass_with_the_others():
    table = table_of(CHANGE, rows_of("cka", [0.9], "dpo"))
    (error,) = check_gate(table, "change_own>0.5").errors
    assert error == "change_own>0.5: change_own of dpo was not measured"


def test_names_that_are_none_are_refused():
    table = table_of(CHANGE)
    with pytest.raises(MidblockError, match=r"unknown metric 'change_won' \(did you mean 'change_own'"):
        check_gate(table, "change_won>0.5")
    with pytest.raises(MidblockError, match=r"unknown model 'stf' \(did you mean 'sft'"):
        check_gate(table, "change_own@stf>0.5")


def test_the_table_of_another_verb_has_its_own_metrics():
    table = table_of(rows_of("swap_nll_change", [0.3], module="base_head"), rows_of("steer_norm", [0.3], "base + 1"))
    assert states(table, "swap_nll_change>0.2,swap_nll_change>0.4,steer_norm>0.4") == ["failed", "passed", "passed"]


def junit(folder):
    return ElementTree.parse(folder / "gate.xml").getroot()  # noqa: S314


def folder_of(path, table, record, config="tokens: all,no-sinks\n"):
    path.mkdir()
    table.write(path)
    (path / "run.json").write_text(json.dumps(record))
    (path / "config.yaml").write_text(config)
    return path


def test_a_run_folder_tells_what_has_no_value_and_no_row(tmp_path):
    lost = [{"metric": "cka", "model": "sft", "layers": [2, 3]}]
    run = folder_of(tmp_path / "run", table_of(CKA), {"verb": "analyze", "undefined": lost})
    assert states(table_of(CKA), "cka>0.99") == ["passed"]
    assert states(run, "cka>0.99,cka[0-1]>0.99,cka[2]>0.99,cka<0.9") == [
        "not defined",
        "passed",
        "not defined",
        "failed",
    ]
    assert "at layer 2 is not defined" in check_gate(run, "cka>0.99").failures[0]


@pytest.mark.parametrize(
    "lost", [None, 3, [3], [{}], [{"metric": "cka", "model": 3, "layers": "x"}], [{"layers": ["a"]}]]
)
def test_a_record_that_somebody_broke_breaks_nothing(lost, tmp_path):
    run = folder_of(tmp_path / "run", table_of(CKA), {"verb": "analyze", "undefined": lost, "models": lost})
    assert states(run, "cka>0.99") == ["passed"]


def test_a_model_that_the_record_alone_knows_is_not_passed_over(tmp_path):
    models = [{"name": name} for name in ("base", "sft", "dpo")]
    run = folder_of(tmp_path / "run", table_of(CKA), {"verb": "analyze", "models": models})
    assert check_gate(run, "cka>0.99").errors == ["cka>0.99: cka of dpo was not measured"]


@pytest.mark.parametrize(("tokens", "state"), [("all,no-sinks", "passed"), ("all", "not measured")])
def test_where_no_prompt_has_a_sink_all_tokens_are_those_without(tokens, state, tmp_path):
    run = folder_of(tmp_path / "run", table_of(CKA), {"verb": "analyze"}, f"tokens: {tokens}\n")
    assert states(run, "cka.no_sinks>0.99") == [state]


def test_json_and_junit_tell_every_condition(tmp_path):
    """A model's name may hold anything; a parser must read back what a person would."""
    name = 'a<b>&"c"\uffff\u202e'
    rows = [*CHANGE, *rows_of("cka", [0.5, NAN]), *rows_of("gini", [0.5], name)]
    text = f"change_own>9,cka@sft<0.6,gini@{json.dumps(name)}>0.1,cka@sft[0]>3".replace("@sft[0]", "[1]@sft")
    gate = check_gate(table_of(rows), f"{text},curvature>1")
    assert [verdict.state for verdict in gate.verdicts] == [
        "not measured",
        "failed",
        "failed",
        "not defined",
        "not measured",
    ]
    gate.write(tmp_path)
    record = json.loads((tmp_path / "gate.json").read_text())
    assert record["passed"] is False
    assert [each["state"] for each in record["conditions"]] == [verdict.state for verdict in gate.verdicts]
    assert record["conditions"][1]["failing"][0] | {"n": 9} == {
        "model": "sft", "layer": 0, "metric": "cka", "module": "residual", "dataset": "", "value": 0.5, "low": None,
        "high": None, "n": 9,
    }  # fmt: skip
    assert record["conditions"][2]["failing"][0]["model"] == name
    suite = junit(tmp_path)[0]
    assert {key: suite.get(key) for key in ("tests", "failures", "errors")} == {
        "tests": "5",
        "failures": "3",
        "errors": "2",
    }
    cases = list(suite)
    assert [[each.tag for each in case] for case in cases] == [
        ["error"],
        ["failure"],
        ["failure"],
        ["failure"],
        ["error"],
    ]
    assert cases[1].get("name") == "cka@sft<0.6"
    assert 'a<b>&"c"' in cases[2][0].get("message")


def test_a_gate_that_passes_says_so(tmp_path):
    gate = midblock.check_gate(table_of(CHANGE), "change_own>0.5,change_own<0.01")
    assert (gate.passed, gate.failures, gate.errors) == (True, [], [])
    gate.write(tmp_path)
    suite = junit(tmp_path)[0]
    assert [len(case) for case in suite] == [0, 0]
    first = json.loads((tmp_path / "gate.json").read_text())["conditions"][0]
    assert (first["compared"], first["nearest"]["value"], first["failing"]) == (4, 0.4, [])
