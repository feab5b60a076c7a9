import json

import pytest

from midblock.cli.main import main
from midblock.evaluation import Evaluation

RUN = ["evaluate", "start", "sft", "--tasks", "exact_match:prompts.jsonl,chain_sum", "--num-samples", "8",
       "--max-new-tokens", "4", "--device", "cpu", "--output-dir", "run"]  # fmt: skip


def test_a_run_folder_a_page_and_a_line_for_every_score(here, capfd):
    assert main([*RUN, "--target", "chain_sum", "--general", "prompts.jsonl", "--general-samples", "4"]) == 0
    out = capfd.readouterr().out
    summary = json.loads((here / "run" / "summary.json").read_text())
    assert summary["headline"] in out
    assert out.count("exact_match:prompts.jsonl") >= 3
    assert "the evidence does not say" in out
    assert "KL general" in out
    assert "Detectable: the smallest difference" in out
    assert (here / "run" / "report.html").exists()
    assert {file.name for file in (here / "run" / "figures").iterdir()} == {
        "scores.png", "scores.pdf", "forgetting.png", "forgetting.pdf"
    }  # fmt: skip


def test_json_and_nothing_else_on_standard_output(here, capfd):
    assert main([*RUN, "--json"]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert [(row["model"], row["n"]) for row in printed["scores"]] == [("base", 8), ("sft", 8)] * 2
    assert [task["rule"] for task in printed["tasks"]] == ["marked", "first_line"]


def test_the_config_left_behind_makes_the_same_numbers(here, capfd):
    assert main([*RUN, "--seed", "3", "--reference", "sft"]) == 0
    assert main(["evaluate", "--config", "run/config.yaml", "--output-dir", "again"]) == 0, capfd.readouterr().err
    first, again = Evaluation.read("run"), Evaluation.read("again")
    assert first.scores.equals(again.scores)
    assert first.samples == again.samples


def test_one_model_alone_is_scored(here, capfd):
    assert main(["evaluate", "start", *RUN[3:]]) == 0
    assert "on exact_match:prompts.jsonl, and 1 more score" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tasks", "gsm_symbol"], "did you mean 'gsm_symbolic'?"),
        (["--tasks", "exact_match:sums.jsonl"], "sums.jsonl"),
        (["--tasks", "chain_sum", "--template", "chat"], "chat template"),
        (["--tasks", "chain_sum", "--reader", "boxd"], "'boxed'"),
        ([], "no task is given"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(here, failure, arguments, said):
    assert said in failure("evaluate", "start", "sft", *arguments, "--device", "cpu", "--output-dir", "run")
    assert not (here / "run").exists()


def test_data_that_is_read_is_not_removed(here, failure):
    assert main(RUN) == 0
    (here / "prompts.jsonl").rename(here / "run" / "prompts.jsonl")
    asked = ["evaluate", "start", "--tasks", "exact_match:run/prompts.jsonl", *RUN[5:], "--overwrite"]
    assert "which this command reads" in failure(*asked)
    assert (here / "run" / "prompts.jsonl").exists()
