import json

import pytest
import yaml

from midblock.base import LayerTable
from midblock.cli.main import main

SMALL = ["--num-samples", "4", "--num-directions-samples", "6", "--max-new-tokens", "5", "--device", "cpu"]
FEW = ["--alpha", "0.5", "--alpha", "1", "--random-draws", "1", "--num-texts", "2"]
RUN = ["steer", "start", "--from", "sft", "--data", "prompts.jsonl", "--output-dir", "run", *SMALL, *FEW]


def test_a_run_folder_with_everything_in_it(here, capfd):
    assert main(RUN) == 0, capfd.readouterr().err
    out = capfd.readouterr().out
    summary = json.loads((here / "run" / "summary.json").read_text())
    assert " ".join(summary["headline"].split()) in " ".join(out.split())
    for shown in ("[prompt]", "[base]", "[α 0.5]", "[α 1]", "[tuned]", "gap closed", "Report: run/report.html"):
        assert shown in out
    found = {path.name for path in (here / "run").iterdir()}
    files = {"run.json", "config.yaml", "layers.parquet", "layers.csv", "summary.json", "report.html", "texts.json"}
    assert found >= {*files, "directions.safetensors"}
    record = json.loads((here / "run" / "run.json").read_text())
    assert (record["verb"], record["status"]) == ("steer", "done")
    assert [model["name"] for model in record["models"]] == ["base", "sft"]
    assert record["command"].startswith("midblock")


def test_json_and_nothing_else_on_standard_output(here, capfd):
    assert main([*RUN, "--no-scan", "--json"]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert (printed["tuned"], printed["folder"]) == ("sft", "run")
    assert [record["alpha"] for record in printed["alphas"]] == [0.5, 1]


def test_the_config_left_behind_makes_the_same_numbers(here, capfd):
    assert main([*RUN, "--blocks", "01", "--kind", "pca", "--seed", "3"]) == 0
    config = yaml.safe_load((here / "run" / "config.yaml").read_text())
    assert (config["base"], config["from"], config["alpha"], config["blocks"]) == ("start", "sft", [0.5, 1.0], "01")
    assert main(["steer", "--config", "run/config.yaml", "--output-dir", "again"]) == 0, capfd.readouterr().err
    for name in ("layers.parquet", "config.yaml", "summary.json", "texts.json", "directions.safetensors"):
        assert (here / "again" / name).read_bytes() == (here / "run" / name).read_bytes()


def test_an_earlier_run_and_the_default_folder(here):
    assert main(RUN) == 0
    assert main(["steer", "start", "--from", "run", "--data", "prompts.jsonl", "--no-scan", *SMALL, *FEW]) == 0
    before, after = (LayerTable.read(here / name).curve("steer_norm", "sft") for name in ("run", "runs/steer-run"))
    assert after.equals(before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--blocks", "0-9"], "names block 3; the model has 0 to 2"),
        (["--kind", "pcaa"], "did you mean 'pca'"),
        (["--from", "stf"], "did you mean sft?"),
        (["--num-directions-samples", "9"], "--num-directions-samples 8"),
        (["--alphas", "1"], "--alpha"),
        (["--data", "promts.jsonl"], "did you mean prompts.jsonl?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options(here, failure, arguments, message):
    options = [*RUN]
    if arguments[0] in options:
        place = options.index(arguments[0])
        del options[place : place + 2]
    assert message in failure(*options, *arguments)
    assert not (here / "run").exists()


def test_without_a_source(here, failure):
    assert "--from" in failure("steer", "start", "--data", "prompts.jsonl")
