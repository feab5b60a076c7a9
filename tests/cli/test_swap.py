import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from midblock.base import LayerTable
from midblock.cli.main import main

DATA = ["--data", "prompts.jsonl", "--num-samples", "8", "--device", "cpu"]
BARE = ["swap", "start", "sft", *DATA, "--output-dir", "run"]
RUN = [*BARE, "--segments", "3"]


def test_a_run_folder_and_a_line_for_every_cell(here, capfd):
    assert main(RUN) == 0
    out = capfd.readouterr().out
    summary = json.loads((here / "run" / "summary.json").read_text())
    assert summary["headline"] in out
    assert "Blocks of sft put into base" in out
    assert "Blocks of base put into sft" in out
    # the embedding and three segments, two heads, two directions
    assert len(summary["cells"]) == 16
    assert all(f"{cell['nll']['value']:.3f} ({cell['nll']['change']:+.3f})" in out for cell in summary["cells"])
    assert len((here / "run" / "cells.csv").read_text().splitlines()) == 17


def test_json_and_nothing_else_on_standard_output(here, capfd):
    assert main([*BARE, "--segments", "each", "--direction", "into_base", "--heads", "tuned", "--json"]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert [cell["blocks"] for cell in printed["cells"]] == ["embedding", "0", "1", "2"]
    assert {cell["head"] for cell in printed["cells"]} == {"tuned_head"}


def test_the_config_left_behind_makes_the_same_numbers(here, capfd):
    assert main([*RUN, "--seed", "3", "--depth", "1"]) == 0
    assert main(["swap", "--config", "run/config.yaml", "--output-dir", "again"]) == 0, capfd.readouterr().err
    assert LayerTable.read("run").frame.equals(LayerTable.read("again").frame)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*BARE, "--segments", "4"], "4 segments; the model has 3 blocks"),
        ([*BARE, "--segments", "0"], "0 segments"),
        ([*BARE, "--segments", "ech"], "segments is 'ech'"),
        ([*RUN, "--depth", "0"], "depth is 0"),
        ([*RUN, "--depth", "1", "--cumulative", "top"], "depth"),
        ([*RUN, "--cumulative", "botom"], "'bottom'"),
        ([*RUN, "--heads", "bas"], "'base'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(here, failure, arguments, message):
    assert message in failure(*arguments)
    assert not (here / "run").exists()


def test_blocks_of_another_shape_are_named(here, failure):
    """A checkpoint whose config says so: a wider MLP."""
    file = here / "sft" / "model.safetensors"
    tensors = {name: wider(name, tensor) for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((here / "sft" / "config.json").read_text())
    (here / "sft" / "config.json").write_text(json.dumps(config | {"intermediate_size": 56}))
    message = failure(*RUN)
    assert "model.layers.0.mlp" in message
    assert "[48, 32]" in message
    assert "[56, 32]" in message


def wider(name, tensor):
    axis = {"gate_proj": 0, "up_proj": 0, "down_proj": 1}.get(name.split(".")[-2])
    if axis is None:
        return tensor
    more = tensor.narrow(axis, 0, 8)
    return torch.cat([tensor, more], axis).contiguous()
