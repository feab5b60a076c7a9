"""`--fail-on` at the command line: exit codes, what is printed, and what lies in the run folder."""

import json
from xml.etree import ElementTree

import pytest

from midblock.base import LayerTable
from midblock.cli.main import main
from midblock.runs.record import read_config, read_record

SMALL = ["--num-samples", "6", "--num-token-samples", "4", "--device", "cpu", "--no-precision-floor"]
METRICS = ["--metrics", "change_own,cka,delta_rel,effective_rank_centered"]
RUN = ["analyze", "start", "sft", "--data", "prompts.jsonl", "--output-dir", "run", *SMALL, *METRICS]
WEIGHTS = ["analyze", "start", "sft", "--output-dir", "run", "--weights-only", "--metrics", "delta_rel"]


def said(capfd):
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith("midblock: ")]


def test_a_gate_that_fails_ends_a_whole_run_and_another_is_held_against_it_without_measuring(here, capfd):
    assert main([*RUN, "--fail-on", "change_own[0-2]>0.001,delta_rel:block<0", "--json"]) == 3
    out, err = capfd.readouterr()
    printed = json.loads(out)
    assert printed["gate"] == json.loads((here / "run" / "gate.json").read_text())
    assert [each["state"] for each in printed["gate"]["conditions"]] == ["failed", "passed"]
    lines = [line for line in err.splitlines() if line.startswith("midblock: ")]
    assert len(lines) == 1
    assert lines[0].startswith("midblock: gate: change_own[0-2]>0.001: change_own of sft at layer ")
    assert lines[0].endswith("above 0.001; the same at 2 more place(s)")
    assert ElementTree.parse(here / "run" / "gate.xml").getroot().get("failures") == "1"  # noqa: S314
    assert (here / "run" / "report.html").exists()
    before = read_record(here / "run")
    assert before["status"] == "done"
    assert "fail_on" not in read_config(here / "run", hint="")
    assert main([*RUN, "--resume", "--fail-on", "change_own>9"]) == 0
    assert said(capfd) == []
    assert json.loads((here / "run" / "gate.json").read_text())["passed"] is True
    assert read_record(here / "run") == before


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "cannot read the condition ''"),
        ("change_own=3", "cannot read the condition 'change_own=3'"),
        ("change_won>3", "unknown metric 'change_won' (did you mean 'change_own'?)"),
        ("gini>3", "gini>3: gini would not be measured (--metrics change_own,cka,"),
        ("cka[7]>3", "[7] names layer 7; the model has -1 to 3"),
        ("cka@stf>3", "unknown model 'stf' (did you mean 'sft'?)"),
    ],
)
def test_what_cannot_be_asked_is_told_before_anything_is_measured(text, told, here, failure):
    assert told in failure(*RUN, "--fail-on", text)
    assert not (here / "run").exists()


def test_what_was_not_measured_after_all_is_an_error_and_the_run_is_kept(here, capfd):
    assert main([*WEIGHTS, "--fail-on", "delta_rel:q_prj>1,delta_rel>0"]) == 2
    assert said(capfd) == [
        "midblock: delta_rel:q_prj>1: delta_rel has no module 'q_prj' (q_proj it has) "
        "(the run is whole all the same; see gate.json in its folder)"
    ]
    states = [each["state"] for each in json.loads((here / "run" / "gate.json").read_text())["conditions"]]
    assert states == ["not measured", "failed"]
    assert len(LayerTable.read(here / "run"))


def test_a_settings_file_may_hold_the_gate(here):
    (here / "mine.yaml").write_text("base: start\ntuned: [sft]\nweights_only: true\nfail_on: 'delta_rel>0'\n")
    assert main(["analyze", "--config", "mine.yaml", "--output-dir", "run", "--metrics", "delta_rel"]) == 3


def test_a_number_that_is_not_defined_fails_the_gate(here, capfd):
    """Prompts that all say the same have no spread: the analysis leaves the number out, the gate must not."""
    rows = [json.dumps({"prompt": "How many are 1 + 3?", "completion": " 4"}) for _ in range(6)]
    (here / "prompts.jsonl").write_text("\n".join(rows))
    assert main([*RUN, "--fail-on", "effective_rank_centered>100,change_own>9"]) == 3
    (line,) = said(capfd)
    assert "effective_rank_centered of sft at layer -1 is not defined, so nothing vouches for it" in line
    lost = read_record(here / "run")["undefined"]
    assert {"metric": "effective_rank_centered", "model": "sft", "layers": [-1, 0, 1, 2, 3]} in lost
