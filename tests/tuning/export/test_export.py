"""Where an export comes from and goes to, and the plans written for other trainers."""

import json
import os
import runpy

import pytest
import torch
import yaml
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from midblock.base import LayerPlan, MidblockError
from midblock.data import load_dataset
from midblock.tuning.export.adapter_source import AdapterSource
from midblock.tuning.export.export import FORMS, export, run_export

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

PROJECTIONS = ["q_proj", "v_proj"]


@pytest.fixture
def make(llama, tmp_path):
    """Save an adapter on the pico Llama."""

    def run(name="adapter", **options):
        model = AutoModelForCausalLM.from_pretrained(llama)
        model.name_or_path = str(llama)
        given = {"r": 4, "lora_alpha": 8, "target_modules": PROJECTIONS, "task_type": "CAUSAL_LM", **options}
        tuned = get_peft_model(model, LoraConfig(**given))
        for key, parameter in tuned.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(key)))
        tuned.save_pretrained(tmp_path / name)
        return tmp_path / name

    return run


def ranks_and_scales(model):
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    return {name: (layer.r["default"], layer.scaling["default"]) for name, layer in layers.items()}


def fresh(llama, config):
    return get_peft_model(AutoModelForCausalLM.from_pretrained(llama), config)


def edit(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# source


def test_a_run_folder_and_its_adapter_export_the_same(tuned, tmp_path, llama):
    artifact = tuned(layers="ranks:4,0,8")
    one, other = export(artifact.folder, tmp_path / "one"), export(artifact.path, tmp_path / "other")
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert AdapterSource.find(str(artifact.folder)).run["learning_rate"] == 3e-3
    ids = torch.tensor([[5, 9, 40, 7]])
    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), artifact.path).eval()(ids).logits
    for to in ("merged", "equal-rank"):
        out = export(artifact.folder, tmp_path / to, to)
        bare = AutoModelForCausalLM.from_pretrained(llama)
        model = AutoModelForCausalLM.from_pretrained(out) if to == "merged" else PeftModel.from_pretrained(bare, out)
        torch.testing.assert_close(model.eval()(ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_run_of_full_tuning_is_a_checkpoint_already(tuned, tmp_path):
    artifact = tuned(method="full", max_steps=1)
    for place in (artifact.folder, artifact.path):
        with pytest.raises(MidblockError, match=rf"already a whole checkpoint: {artifact.path}"):
            export(place, tmp_path / "out")


def test_what_is_no_adapter_says_so(tmp_path, make):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MidblockError, match="empty is no adapter"):
        export(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "empty" / "run.json").write_text("{}")
    with pytest.raises(MidblockError, match="has no adapter"):
        export(tmp_path / "empty", tmp_path / "out")
    make()
    with pytest.raises(MidblockError, match=r"no model at .*adaptor \(did you mean .*adapter"):
        export(tmp_path / "adaptor", tmp_path / "out")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(MidblockError, match="has no adapter_model"):
        export(tmp_path / "adapter", tmp_path / "out", "equal-rank")
    torch.save({}, tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(MidblockError, match="pickled"):
        export(tmp_path / "adapter", tmp_path / "out", "equal-rank")


def test_only_merging_needs_the_base(make, tmp_path, llama):
    adapter = make()
    edit(adapter, base_model_name_or_path="/gone/away")
    with pytest.raises(MidblockError, match=r"base of the adapter .* was not found.*--base"):
        export(adapter, tmp_path / "merged")
    assert list(tmp_path.glob(".merged*")) == []
    for to in set(FORMS) - {"merged"}:
        assert export(adapter, tmp_path / to, to).exists()
    assert export(adapter, tmp_path / "merged", base=str(llama)).exists()
    edit(adapter, base_model_name_or_path=None)
    with pytest.raises(MidblockError, match=r"does not say what its base is.*--base"):
        export(adapter, tmp_path / "script", "trl")


# output


def test_an_unknown_form_names_the_nearest(make, tmp_path):
    with pytest.raises(MidblockError, match=r"'merge'.*did you mean 'merged'"):
        export(make(), tmp_path / "out", "merge")
    with pytest.raises(MidblockError, match="unknown dtype"):
        export(make(), tmp_path / "out", dtype="float17")
    with pytest.raises(MidblockError, match="about merged weights"):
        export(make(), tmp_path / "out", "trl", dtype="float32")


def test_what_is_there_is_kept_unless_told(make, tmp_path):
    adapter = make()
    out = export(adapter, tmp_path / "out")
    with pytest.raises(MidblockError, match=r"exists already.*--overwrite"):
        export(adapter, out)
    for mine in ("mine.txt", "more/mine.txt"):
        (out / mine).parent.mkdir(exist_ok=True)
        (out / mine).write_text("x")
        with pytest.raises(MidblockError, match=f"out holds {mine}, which no export wrote"):
            export(adapter, out, "equal-rank", overwrite=True)
        (out / mine).unlink()
    (out / "more").rmdir()
    export(adapter, out, "equal-rank", overwrite=True)
    assert not (out / "config.json").exists()
    assert json.loads((out / "export.json").read_text())["to"] == "equal-rank"
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("x")
    with pytest.raises(MidblockError, match="was not written by `midblock export`"):
        export(adapter, tmp_path / "foreign", overwrite=True)
    (tmp_path / "foreign" / "export.json").write_text('{"to": "pdf", "midblock": "1"}')  # another program's
    with pytest.raises(MidblockError, match="was not written by `midblock export`"):
        export(adapter, tmp_path / "foreign", overwrite=True)
    assert (tmp_path / "foreign" / "thesis.tex").read_text() == "x"
    (adapter / "export.json").write_text('{"to": "equal-rank", "midblock": "1"}')
    with pytest.raises(MidblockError, match="holds the adapter itself"):
        export(adapter, adapter, "equal-rank", overwrite=True)


def test_what_is_read_is_not_replaced(make, tmp_path, llama):
    adapter = make()
    base = tmp_path / "merged"
    export(adapter, base)
    with pytest.raises(MidblockError, match="merged holds the base itself"):
        export(adapter, base, base=str(base), overwrite=True)
    before = (adapter / "adapter_config.json").read_bytes()
    with pytest.raises(MidblockError, match="holds the adapter itself"):
        export(adapter, adapter / "adapter_config.json", "lora-config", overwrite=True)
    assert (adapter / "adapter_config.json").read_bytes() == before
    assert str(tmp_path) not in (base / "export.json").read_text()


def test_a_failed_export_leaves_what_was_there(make, tmp_path):
    adapter = make()
    out = export(adapter, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    edit(adapter, r=9)
    with pytest.raises(MidblockError, match="have rank 4, its config says 9"):
        export(adapter, out, overwrite=True)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert list(tmp_path.glob(".out*")) == []


def test_a_name_with_a_suffix_is_the_file(make, tmp_path):
    adapter = make()
    assert export(adapter, tmp_path / "deep" / "train.py", "trl").is_file()
    with pytest.raises(MidblockError, match="exists already"):
        export(adapter, tmp_path / "deep" / "train.py", "trl")
    assert export(adapter, tmp_path / "deep" / "train.py", "trl", overwrite=True).is_file()
    with pytest.raises(MidblockError, match="is a file"):
        export(adapter, tmp_path / "deep" / "train.py", "merged", overwrite=True)


# lora-config


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank_pattern": {r".*layers\.0\..*": 2}, "alpha_pattern": {"v_proj": 5}, "use_rslora": True},
        {"layers_to_transform": [1], "lora_dropout": 0.1, "use_dora": True, "modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
def test_the_lora_config_makes_the_same_adapters(make, tmp_path, llama, options):
    adapter = make(**options)
    out = export(adapter, tmp_path / "out", "lora-config")
    expected = ranks_and_scales(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), adapter))
    config = PeftConfig.from_pretrained(out)
    assert config.inference_mode is False
    assert config.base_model_name_or_path == str(llama)
    assert ranks_and_scales(fresh(llama, config)) == expected
    plain = LoraConfig(**json.loads((out / "adapter_config.json").read_text()))
    assert ranks_and_scales(fresh(llama, plain)) == expected


def test_a_lora_config_that_is_not_the_adapters_is_refused(make, tmp_path):
    adapter = make()
    edit(adapter, rank_pattern={"q_proj": 3})
    with pytest.raises(MidblockError, match="have rank 4, its config says 3"):
        export(adapter, tmp_path / "out.json", "lora-config")
    assert not (tmp_path / "out.json").exists()


# axolotl


def test_the_axolotl_recipe_says_the_plan_and_the_schedule(tuned, tmp_path, llama, sums):
    artifact = tuned(layers="1-2", lora_r=8, warmup_steps=0.1, lora_dropout=0.05, seed=7)
    made = run_export(artifact.folder, tmp_path / "recipe.yaml", "axolotl")
    recipe = yaml.safe_load(made.path.read_text())
    expected = {
        "base_model": str(llama),
        "adapter": "lora",
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "lora_target_modules": [f"self_attn.{name}_proj" for name in "koqv"],
        "peft_layers_to_transform": [1, 2],
        "learning_rate": 3e-3,
        "micro_batch_size": 4,
        "max_steps": 10,
        "warmup_ratio": 0.1,
        "sequence_len": 1024,
        "seed": 7,
        "datasets": [{"path": str(sums), "ds_type": "json", "type": "chat_template"}],
    }
    assert {name: recipe.get(name) for name in expected} == expected
    assert any("must fit your columns" in note for note in made.notes)
    # Axolotl hands these keys to PEFT as they are
    config = LoraConfig(
        r=recipe["lora_r"], lora_alpha=recipe["lora_alpha"], target_modules=recipe["lora_target_modules"],
        layers_to_transform=recipe["peft_layers_to_transform"],
    )  # fmt: skip
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), artifact.path)
    assert ranks_and_scales(fresh(llama, config)) == ranks_and_scales(theirs)


def test_an_uneven_plan_is_named_module_by_module(make, tmp_path):
    adapter = make(target_modules=["model.layers.0.self_attn.q_proj", "model.layers.2.self_attn.v_proj"])
    recipe = yaml.safe_load(export(adapter, tmp_path / "r.yaml", "axolotl").read_text())
    names = ["model.layers.0.self_attn.q_proj", "model.layers.2.self_attn.v_proj"]
    assert recipe["lora_target_modules"] == names
    assert "peft_layers_to_transform" not in recipe


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rank_pattern": {"q_proj": 2}},
            r"one rank for all adapters, this plan has 2 at scale 4, 4 at scale 2 .*equal",
        ),
        ({"alpha_pattern": {"q_proj": 2}}, r"4 at scale 0.5, 4 at scale 2"),
        ({"bias": "lora_only"}, "no biases"),
        ({"lora_bias": True}, "LoRA with a bias"),
        ({"lora_alpha": 2.5}, "whole lora_alpha"),
    ],
    ids=str,
)
def test_what_axolotl_cannot_say_is_refused(make, tmp_path, options, message):
    with pytest.raises(MidblockError, match=message):
        export(make(**options), tmp_path / "r.yaml", "axolotl")
    assert not (tmp_path / "r.yaml").exists()


@pytest.mark.parametrize(
    ("run", "data"),
    [
        ({"data": "gsm8k"}, {"path": "openai/gsm8k", "name": "main", "split": "test"}),
        ({"data": "alpaca"}, {"path": "tatsu-lab/alpaca", "split": "train", "type": "alpaca"}),
        ({"data": "org/set@part", "split": "dev"}, {"path": "org/set", "name": "part", "split": "dev"}),
        ({"data": "x.parquet"}, {"path": "x.parquet", "ds_type": "parquet", "type": "chat_template"}),
    ],
    ids=str,
)
def test_data_by_axolotls_keys(make, tmp_path, run, data):
    adapter = make("run/adapter", use_dora=True)
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(run))
    recipe = yaml.safe_load(export(tmp_path / "run", tmp_path / "r.yaml", "axolotl").read_text())
    assert adapter.exists()
    assert recipe["peft_use_dora"] is True
    assert recipe["datasets"][0].items() >= data.items()


# trl


def test_the_trl_script_trains_the_same_plan(tuned, tmp_path, monkeypatch, llama, sums):
    artifact = tuned(layers="ranks:4,0,8", max_steps=2, num_samples=16, lora_dropout=0.05, warmup_steps=1, seed=3)
    out = export(artifact.folder, tmp_path / "train.py", "trl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "ACCELERATE_USE_CPU", "true")
    done = runpy.run_path(str(out))
    trainer = done["trainer"]
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), artifact.path)
    assert ranks_and_scales(trainer.model) == ranks_and_scales(theirs)
    assert trainer.state.global_step == 2
    assert (trainer.args.learning_rate, trainer.args.warmup_steps, trainer.args.seed) == (3e-3, 1, 3)
    assert (tmp_path / "trl-output" / "adapter_model.safetensors").exists()
    examples = load_dataset(sums, num_samples=16, seed=3)
    assert done["dataset"]["completion"] == [example.completion for example in examples]
    before = (tmp_path / "trl-output" / "adapter_model.safetensors").read_bytes()
    torch.manual_seed(99)  # the script must not depend on what came before it
    runpy.run_path(str(out))
    assert (tmp_path / "trl-output" / "adapter_model.safetensors").read_bytes() == before
    trained = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), tmp_path / "trl-output")
    assert any(bool(p.any()) for name, p in trained.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize("to", sorted(FORMS))
def test_the_run_says_what_cannot_be_carried_over(tuned, tmp_path, to):
    artifact = tuned(layers="0-0", lora_r=4, loss="dft", anchor="rpsft", anchor_k="4", max_steps=1)
    notes = " ".join(run_export(artifact.folder, tmp_path / to, to).notes)
    assert ("'dft'" in notes) == ("'rpsft'" in notes) == (to in ("axolotl", "trl"))


@pytest.mark.parametrize(
    ("run", "row"),
    [
        ({}, {"prompt": "Q\n", "completion": "A"}),
        ({"train_on_prompt": True}, {"text": "Q\nA"}),
        (
            {"template": "chat"},
            {"prompt": [{"role": "user", "content": "Q"}], "completion": [{"role": "assistant", "content": "A"}]},
        ),
        (
            {"template": "t.jinja", "train_on_prompt": True},
            {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
        ),
    ],
    ids=str,
)
def test_rows_as_trl_wants_them(make, tmp_path, run, row):
    make("run/adapter")
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"question": "Q", "answer": "A"}) + "\n")
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"data": str(data), **run}))
    script = export(tmp_path / "run", tmp_path / "train.py", "trl").read_text()
    compile(script, "train.py", "exec")
    scope = {}
    exec(script.partition("args = SFTConfig")[0], scope)  # noqa: S102
    assert scope["dataset"][0] == row
    assert ("chat_template_path='t.jinja'" in script) == (run.get("template") == "t.jinja")


def test_a_plan_and_its_script_name_the_same_blocks(tuned, tmp_path):
    artifact = tuned(layers="010", max_steps=1)
    script = export(artifact.folder, tmp_path / "train.py", "trl").read_text()
    scope = {}
    exec(script.partition("examples =")[0], scope)  # noqa: S102
    blocks = {int(name.split(".")[2]) for name in scope["peft_config"].target_modules}
    assert blocks == set(LayerPlan.parse("010", 3).blocks)
