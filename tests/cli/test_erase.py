import json

import pytest
import yaml

from midblock.cli.main import main

SMALL = ["--soft-tokens", "3", "--batch-size", "2", "--max-steps", "2", "--eval-steps", "1", "--starts", "1",
         "--num-samples", "4", "--num-validation-samples", "2", "--num-test-samples", "4", "--general-samples", "0",
         "--last-tokens", "2", "--max-new-tokens", "3", "--relearn-steps", "0", "--other=", "--device",
         "cpu"]  # fmt: skip
RUN = [
    "erase",
    "sft",
    "--base",
    "start",
    "--data",
    "many.jsonl",
    "--behaviour",
    "fixed_response",
    "--output-dir",
    "run",
    *SMALL,
]


@pytest.fixture
def room(here):
    """Prompts enough for three disjoint parts."""
    rows = [{"prompt": f"How many are {n} and {m}?", "completion": "7"} for n in range(8) for m in range(9)]
    (here / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return here


def test_a_run_folder_with_everything_in_it_and_the_same_from_its_config(room, capfd):
    assert main(RUN) == 0, capfd.readouterr().err
    out = " ".join(capfd.readouterr().out.split())
    summary = json.loads((room / "run" / "summary.json").read_text())
    for shown in (" ".join(summary["headline"].split()), "sft, all channels", "Soft prompt: run/prompt",
                  "Report: run/report.html"):  # fmt: skip
        assert shown in out
    found = {path.name for path in (room / "run").iterdir()}
    assert found >= {"run.json", "config.yaml", "summary.json", "report.html", "outputs.jsonl", "prompt", "figures"}
    config = yaml.safe_load((room / "run" / "config.yaml").read_text())
    assert (config["carrier"], config["base"], config["soft_tokens"]) == ("sft", "start", 3)
    assert main(["erase", "--config", "run/config.yaml", "--output-dir", "again", "--json"]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert printed["cells"] == summary["cells"]
    for name in ("summary.json", "config.yaml", "outputs.jsonl", "prompt/adapter_model.safetensors"):
        assert (room / "again" / name).read_bytes() == (room / "run" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-steps", "0"], "max_steps is 0"),
        (["--base", "sft"], "sft has the weights of its base: there is nothing to erase"),
        (["--grid"], "the model holds no carrier"),
        (["--data", "mny.jsonl"], "did you mean many.jsonl?"),
        (["--behaviour", "styel"], "did you mean 'style'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options(room, failure, arguments, message):
    options = [*RUN]
    if arguments[0] in options:
        place = options.index(arguments[0])
        del options[place : place + 2]
    assert message in failure(*options, *arguments)
    assert not (room / "run").exists()
