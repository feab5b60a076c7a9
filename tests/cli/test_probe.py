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


@pytest.mark.parametrize("verb", ["analyze", "probe", "swap", "steer", "flow", "tune", "merge"])
def test_what_a_command_reads_is_not_overwritten_by_it(here, failure, verb):
    assert main(["merge", "start", "sft", "--alphas", "0.5", "--output-dir", "mm"]) == 0
    (here / "box").mkdir()
    (here / "box" / "run.json").write_text('{"verb": "probe"}')
    (here / "prompts.jsonl").rename(here / "box" / "prompts.jsonl")
    (here / "sft").rename(here / "box" / "sft")
    before = {file: file.read_bytes() for name in ("mm", "box") for file in (here / name).rglob("*") if file.is_file()}
    data = ["--data", "box/prompts.jsonl", "--num-samples", "8", "--device", "cpu"]
    rest = {
        "analyze": ["start", "mm", *data],
        "probe": ["start", "mm", *data],
        "swap": ["start", "mm", *data, "--segments", "2"],
        "steer": ["start", "--from", "mm", *data],
        "merge": ["start", "mm", "--alphas", "0.5"],
    }.get(verb, ["mm", "--data", "box/prompts.jsonl", "--device", "cpu"])
    for out in ("mm", "box"):
        if (verb, out) != ("merge", "box"):
            said = failure(verb, *rest, "--output-dir", out, "--overwrite")
            assert f"{out} holds {'mm' if out == 'mm' else 'box/prompts.jsonl'} itself" in said
    if verb in ("analyze", "probe", "swap", "merge"):
        rest[1] = "box/sft"
        assert "box holds box/sft itself" in failure(verb, *rest, "--output-dir", "box", "--overwrite")
    assert {file: file.read_bytes() for file in before} == before


def test_a_broken_summary_is_named(here, failure):
    assert main(RUN) == 0
    for content in ("{", "[]", "{}"):
        (here / "run" / "summary.json").write_text(content)
        assert "run/summary.json is missing or broken" in failure(*RUN, "--resume")
