import json

import pytest

from midblock.base import LayerTable
from midblock.cli.main import main

DATA = ["--data", "prompts.jsonl", "--num-samples", "8", "--device", "cpu"]
RUN = ["probe", "start", "sft", *DATA, "--output-dir", "run"]


def test_a_run_folder_and_a_line_for_every_depth(here, capfd):
    assert main(RUN) == 0
    out = capfd.readouterr().out
    summary = json.loads((here / "run" / "summary.json").read_text())
    assert summary["headline"] in out
    assert "Report: run/report.html" in out
    table = LayerTable.read(here / "run")
    curve = table.curve("exit_accuracy", "sft")
    assert curve.layer.tolist() == [-1, 0, 1, 2]
    assert all(f"{value:.3f}" in out for value in curve.value)
    assert {path.name for path in (here / "run").iterdir()} >= {"run.json", "config.yaml", "layers.csv", "report.html"}


def test_a_model_alone_keeps_its_name(here, capfd):
    assert main(["probe", "sft", *DATA, "--json"]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert [model["name"] for model in printed["models"]] == ["sft"]
    assert printed["folder"] == "runs/probe-sft"


@pytest.mark.parametrize("models", [["start", "sft"], ["sft"]])
def test_the_config_left_behind_makes_the_same_numbers(here, capfd, models):
    assert main(["probe", *models, *DATA, "--output-dir", "run", "--seed", "3"]) == 0
    assert main(["probe", "--config", "run/config.yaml", "--output-dir", "again"]) == 0, capfd.readouterr().err
    assert LayerTable.read("run").frame.equals(LayerTable.read("again").frame)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["probe", "start", "sfd", *DATA], "sfd"),
        ([*RUN, "--region", "anser"], "'answer'"),
        ([*RUN, "--generate", "--generate-layers", "2-9"], "names block 3; the model has 0 to 2"),
        ([*RUN, "--generate", "--reader", "gsm"], "'gsm8k'"),
        (["probe", "start", "--data", "prompts.jsonl", "--output-dir", "run", "--num-samples", "99"], "12 samples"),
        ([*RUN, "--generat"], "--generate"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(here, failure, arguments, message):
    assert message in failure(*arguments)
    assert not (here / "run").exists()


def test_an_earlier_run_is_not_lost(here, failure):
    assert main(RUN) == 0
    before = (here / "run" / "layers.csv").read_bytes()
    assert "exists already" in failure(*RUN)
    assert "other settings" in failure(*RUN, "--resume", "--max-length", "20")
    assert main([*RUN, "--resume"]) == 0
    assert (here / "run" / "layers.csv").read_bytes() == before
