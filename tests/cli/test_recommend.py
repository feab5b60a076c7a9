import json

import pytest

from midblock.cli.main import main

SMALL = ("--num-samples", "4", "--test-samples", "4", "--segments", "2", "--grid", "1", "--device", "cpu")
SEEN = ("--num-samples", "8", "--metrics", "change_own", "--device", "cpu")


@pytest.fixture
def analysed(here):
    assert main(["analyze", "start", "sft", "--data", "prompts.jsonl", *SEEN, "-o", "compared"]) == 0
    return here


def test_runs_give_a_plan_with_reasons(analysed, capfd):
    capfd.readouterr()
    assert main(["recommend", "compared", "-o", "advice"]) == 0
    out = capfd.readouterr().out
    assert "blocks" in out
    assert "- Own change of sft" in out
    assert (analysed / "advice" / "report.html").exists()
    assert main(["recommend", "--config", "advice/config.yaml", "-o", "again", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    before = json.loads((analysed / "advice" / "recommendation.json").read_text())
    assert {name: told[name] for name in before if name != "cost"} == {n: v for n, v in before.items() if n != "cost"}
    assert main(["recommend", "compared", "-o", "advice", "--resume"]) == 0
    assert out.splitlines()[0] == capfd.readouterr().out.splitlines()[0]


def test_mistakes_of_recommend(analysed, failure):
    assert "recommend RUN… reads runs" in failure("recommend", "start")
    assert "two models and no general data" in failure("recommend", "start", "sft")
    assert "take no data" in failure("recommend", "compared", "--data", "prompts.jsonl")
    assert "nothing is given" in failure("recommend")
    assert "too small for one step" in failure(
        "recommend", "start", "--data", "prompts.jsonl", "--num-samples", "4", "--budget", "0.001", "--device", "cpu"
    )
    assert "more than 20 are needed" in failure("recommend", "start", "--data", "prompts.jsonl", "--num-samples", "20")
    assert "keep is 2" in failure("recommend", "compared", "--keep", "2")
    examples = ("--data", "prompts.jsonl", "--general", "prompts.jsonl", "--test", "prompts.jsonl")
    assert "are in the task's test set too" in failure(
        "recommend", "start", "sft", *examples, *SMALL[4:], "--num-samples", "8", "--test-samples", "8"
    )
    assert not (analysed / "runs").exists()
