import json

import pytest

from midblock.base import LayerTable
from midblock.cli.main import main

FEW = ["--max-steps", "3", "--device", "cpu", "--max-length", "64", "--per-device-train-batch-size", "2"]


@pytest.fixture
def command(here):
    return ["flow", "start", "--data", "prompts.jsonl", *FEW]


def test_flow_writes_a_run_folder_and_says_where_gradients_sit(command, here, capfd):
    assert main([*command, "--lora-r", "4"]) == 0
    out = capfd.readouterr().out.splitlines()
    folder = here / "runs" / "flow-start"
    summary = json.loads((folder / "summary.json").read_text())
    assert out[0] == summary["headline"]
    assert out[-1] == "Report: runs/flow-start/report.html"
    assert (folder / "report.html").is_file()
    table = LayerTable.read(folder)
    assert table.models == ["flow-start"]
    assert {"gradient_norm", "gradient_agreement", "gradient_snr", "delta_rel"} <= set(table.metrics)
    command = json.loads((folder / "run.json").read_text())["command"]
    assert command.startswith("midblock")


def test_flow_prints_json_for_programs(command, here, capfd):
    assert main([*command, "--json", "--output-dir", "out", "--sketch-size", "100"]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert printed["steps"] == 3
    assert printed["folder"] == "out"
    assert "sketches of 100 numbers" in printed["notes"][0]
    assert json.loads((here / "out" / "summary.json").read_text()).items() <= printed.items()


def test_the_config_that_a_run_wrote_repeats_it(command, here, capfd):
    assert main([*command, "--output-dir", "one", "--layers", "2", "--method", "full"]) == 0
    assert main(["flow", "--config", "one/config.yaml", "--output-dir", "two"]) == 0
    first, second = (LayerTable.read(here / name).frame.drop(columns="model") for name in ("one", "two"))
    assert first.equals(second)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--learning-rate", "0"], "learning_rate is 0.0; it must be above 0"),
        (["--shard"], "--shard"),
        (["--push-to-hub"], "--push-to-hub"),
        (["--save-steps", "3"], "--save-steps"),
        (["--layers", "7"], "names block 7"),
    ],
)
def test_what_flow_cannot_do_is_said_in_one_line(command, failure, options, said):
    assert said in failure(*command, *options)
