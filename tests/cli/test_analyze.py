import json
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from midblock.base import LayerTable
from midblock.cli.main import main

SMALL = ["--num-samples", "8", "--num-token-samples", "4", "--device", "cpu", "--metrics", "p1,logit_agreement"]
RUN = ["analyze", "start", "sft", "--data", "prompts.jsonl", "--output-dir", "run", *SMALL]


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_run_folder_with_everything_in_it(here, capfd):
    assert main(RUN) == 0
    out = capfd.readouterr().out
    assert "sft against base" in out
    assert "Report: run/report.html" in out
    found = {path.name for path in (here / "run").iterdir()}
    assert found >= {
        "run.json",
        "config.yaml",
        "layers.parquet",
        "layers.csv",
        "summary.json",
        "report.html",
        "figures",
    }
    assert not any(name.startswith(".") or name == "partial" for name in found)
    record = json.loads((here / "run" / "run.json").read_text())
    assert record["status"] == "done"
    assert [model["name"] for model in record["models"]] == ["base", "sft"]
    assert len({model["weight_hash"] for model in record["models"]}) == 2
    assert record["data"]["num_samples"] == 8
    assert set(record["phases"]) >= {"prepare", "measure", "evaluate", "weights", "write"}


def test_json_and_nothing_else_on_standard_output(here, capfd):
    assert main([*RUN, "--json"]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert printed["folder"] == "run"
    assert printed["report"] == "run/report.html"
    assert [model["name"] for model in printed["models"]] == ["sft"]
    assert printed["headline"] == json.loads((here / "run" / "summary.json").read_text())["headline"]


@pytest.mark.parametrize("more", [[], ["--weights-only"]])
def test_the_config_left_behind_makes_the_same_numbers(here, capfd, more):
    assert main([*RUN, "--seed", "3", "--layers", "0-1", "--batch-tokens", "100", *more]) == 0
    assert main(["analyze", "--config", "run/config.yaml", "--output-dir", "again"]) == 0, capfd.readouterr().err
    assert (here / "again" / "layers.parquet").read_bytes() == (here / "run" / "layers.parquet").read_bytes()
    assert (here / "again" / "config.yaml").read_text() == (here / "run" / "config.yaml").read_text()


def test_flags_override_the_config(here):
    (here / "mine.yaml").write_text("base: start\ntuned: [sft]\ndata: prompts.jsonl\nseed: 1\nnum_samples: 8\n")
    assert main(["analyze", "--config=mine.yaml", "--output-dir", "run", "--seed", "2", *SMALL]) == 0
    made = yaml.safe_load((here / "run" / "config.yaml").read_text())
    assert (made["base"], made["tuned"], made["seed"], made["num_samples"]) == ("start", ["sft"], 2, 8)


def test_several_tuned_models_and_a_default_folder(here):
    assert main(["analyze", "start", "sft", "sharded", "--weights-only"]) == 0
    table = LayerTable.read(here / "runs" / "analyze-sft-sharded")
    assert table.models == ["sft", "sharded"]
    sft, sharded = (table.select(model=name).frame.value.tolist() for name in table.models)
    assert sorted(sft) == pytest.approx(sorted(sharded), rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "ckaa"], "unknown metric 'ckaa' (did you mean 'cka'?)"),
        (["--metrics", ""], "metrics is empty"),
        (["--region", "anser"], "unknown region 'anser' (did you mean 'answer'?)"),
        (["--dtype", "flot32"], "unknown dtype 'flot32' (did you mean 'float32'?)"),
        (["--device", "cuda:99"], "device 'cuda:99' is not available"),
        (["--batch-token", "5"], "--batch-tokens"),
        (["--layers", "2-9"], "names block 3; the model has 0 to 2"),
        (["--layers", "top"], "cannot read the layer plan 'top'"),
        (["--num-samples", "3"], "num_samples is 3; it must be 4 or more"),
        (["--num-samples", "13"], "prompts.jsonl holds 12 samples; 13 samples were asked for"),
        (["--max-length", "2"], "max_length is 2"),
        (["--template", "chat"], "template"),
        (["--template", "gone.jinja"], "gone.jinja"),
        (["--data", "promts.jsonl"], "did you mean prompts.jsonl?"),
        (["--data", "builtin:gsm_symbolik"], "did you mean 'gsm_symbolic'?"),
        (["--data", "gsm9k"], "did you mean 'gsm8k'?"),
        (["--data", "nobody/nothing-of-the-kind"], "nobody/nothing-of-the-kind"),
        (["--split", "test"], "has no split 'test'"),
        (["--resume", "--overwrite"], "exclude each other"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options(here, failure, arguments, message):
    options = [*RUN]
    for name in arguments[::2]:
        if name in options:
            place = options.index(name)
            del options[place : place + 2]
    assert message in failure(*options, *arguments)


def test_every_bad_dataset(here, failure):
    def said(name, content):
        (here / name).write_text(content)
        options = ["--data", name, "--output-dir", f"run-{name}", *SMALL]
        return failure("analyze", "start", "sft", *options)

    assert "no known column layout in 'qestion', 'reply'" in said("odd.jsonl", '{"qestion": "a", "reply": "b"}\n' * 9)
    assert "holds no rows" in said("empty.jsonl", "")
    assert "shorter than 3 tokens" in said("short.jsonl", '{"text": "a"}\n' * 9)
    assert "line 2 is no valid JSON" in said("cut.jsonl", '{"text": "abc def"}\n{"text": \n')
    assert "row 2" in said("null.jsonl", '{"text": "abc def"}\n{"text": null}\n' * 9)


def test_the_output_folder_exists(here, failure):
    (here / "run").mkdir()
    (here / "run" / "mine.txt").write_text("x")
    said = failure(*RUN)
    assert "run exists already" in said
    assert "--resume" not in said
    assert "--overwrite" not in said
    assert "not written by midblock" in failure(*RUN, "--overwrite")
    assert (here / "run" / "mine.txt").read_text() == "x"
    assert "no run folder" in failure(*RUN, "--resume")


def test_overwrite_and_resume_of_a_finished_run(here, failure):
    run = ["analyze", "start", "sft", "--weights-only", "--output-dir", "run"]
    assert main(run) == 0
    before = (here / "run" / "layers.parquet").read_bytes()
    assert main([*run, "--resume"]) == 0
    said = failure(*run, "--layers", "0-1", "--resume")
    assert "run was made with other settings: layers: 'all' then, '0-1' now" in said
    assert (here / "run" / "layers.parquet").read_bytes() == before
    assert main([*run, "--layers", "0-1", "--overwrite"]) == 0
    assert set(LayerTable.read(here / "run").frame.layer) == {0, 1}


def spoil_missing(folder):
    shutil.rmtree(folder)


def spoil_truncated(folder):
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])


def spoil_header(folder):
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:8] + b"not json" + shard.read_bytes()[16:])


def spoil_shard(folder):
    sorted(folder.glob("*.safetensors"))[1].unlink()


def spoil_index(folder):
    (folder / "model.safetensors.index.json").write_text("{")


def spoil_pickled(folder):
    state = {}
    for shard in sorted(folder.glob("*.safetensors")):
        state |= load_file(shard)
        shard.unlink()
    (folder / "model.safetensors.index.json").unlink()
    torch.save(state, folder / "pytorch_model.bin")


def spoil_remote(folder):
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('ran')")


def spoil_type(folder):
    edit(folder / "config.json", model_type="lama")


def spoil_tokenizer(folder):
    other = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    vocabulary = json.loads(other.to_str())
    ids = vocabulary["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))


def spoil_depth(folder):
    edit(folder / "config.json", num_hidden_layers=2)


def spoil_width(folder):
    edit(folder / "config.json", hidden_size=64)


def spoil_nan(folder):
    shard = sorted(folder.glob("*.safetensors"))[1]
    state = load_file(shard)
    state[sorted(state)[0]][0] = float("nan")
    save_file(state, shard, metadata={"format": "pt"})


@pytest.mark.parametrize("more", [[], ["--weights-only"]], ids=["states", "weights"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_missing, "no model at sharded"),
        (spoil_truncated, "model-00002-of-"),
        (spoil_header, "model-00002-of-"),
        (spoil_shard, "shard 'model-00002-of-"),
        (spoil_index, "index.json is not readable JSON"),
        (spoil_pickled, "convert it to safetensors, or say --allow-pickle"),
        (spoil_remote, "brings its own model code, which is not run (say --trust-remote-code"),
        (spoil_type, "unknown model_type 'lama' (did you mean 'llama'?"),
        (spoil_depth, "sharded has 2 decoder blocks, the base 3"),
        (spoil_width, "sharded has 64 channels, the base 32"),
        (spoil_nan, "NaN or Inf in"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_bad_models(here, failure, spoil, message, more):
    spoil(here / "sharded")
    options = ["--data", "prompts.jsonl", "--output-dir", "run", *SMALL]
    said = failure("analyze", "start", "sharded", *options, *more)
    assert message in said
    if spoil in (spoil_truncated, spoil_header):
        assert "truncated" in said or "corrupt" in said
    assert not (here / "run" / "layers.parquet").exists()


def test_other_tokenizers(here, failure):
    spoil_tokenizer(here / "sft")
    assert "the tokenizers of the base and of sft differ: 2 shared tokens have other ids" in failure(*RUN)


def test_no_tokenizer(here, failure):
    (here / "start" / "tokenizer.json").unlink()
    assert "no tokenizer in start" in failure(*RUN)
    # Weights are compared without reading a word.
    assert main(["analyze", "start", "sft", "--weights-only", "--output-dir", "weights"]) == 0


def test_pickles_and_consent(here):
    spoil_pickled(here / "sharded")
    options = ["--weights-only", "--output-dir"]
    assert main(["analyze", "start", "sft", *options, "safe"]) == 0
    assert main(["analyze", "start", "sharded", *options, "pickled", "--allow-pickle"]) == 0
    safe, pickled = (LayerTable.read(here / name).frame.value.tolist() for name in ("safe", "pickled"))
    assert sorted(safe) == pytest.approx(sorted(pickled), rel=1e-12)


def test_an_adapter_and_its_base(here, failure):
    model = AutoModelForCausalLM.from_pretrained("start")
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained("adapter")
    edit(here / "adapter" / "adapter_config.json", base_model_name_or_path="/gone/base")
    said = failure("analyze", "adapter", "sft", "--weights-only")
    assert "the base of the adapter adapter was not found: no model at /gone/base" in said
    assert main(["analyze", "start", "adapter", "--weights-only", "--output-dir", "run"]) == 0
    assert LayerTable.read(here / "run").curve("delta_rel", "adapter", "q_proj").value.min() > 0


@pytest.mark.parametrize("name", ["nobody/no-such-model", "nobody/no-such-model@v1"])
def test_a_hub_name_without_a_network(here, failure, name):
    # The suite runs with HF_HUB_OFFLINE=1, as on a machine without a network.
    said = failure("analyze", name, "sft")
    assert f"{name} is not in the cache and the hub cannot be reached" in said
    assert "HF_HUB_OFFLINE" in said


def test_from_a_shell_standard_output_is_json_alone(here):
    command = [sys.executable, "-m", "midblock.cli.main", *RUN, "--weights-only", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["folder"] == "run"
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
