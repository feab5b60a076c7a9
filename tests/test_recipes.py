"""The recipes: every key binds to an option with the value that is written, and accelerate takes its configs."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from midblock.base import LayerPlan, divide
from midblock.carriers.carve.taught import Taught
from midblock.checkpoints import LoadSettings, ModelReference
from midblock.cli import main
from midblock.evaluation import EvaluateSettings
from midblock.runs.verbs import VERBS
from midblock.studies.study import exams
from midblock.studies.study.exams import validation_options
from midblock.studies.study.study_file import StudyFile
from midblock.studies.study.trials import reference_arm, trials_of, tune_options
from midblock.tuning import TuneSettings
from midblock.tuning.place.budget import BlockCost, alpha_for, block_ranks

ROOT = Path(__file__).parents[1] / "recipes"
WHOLE_STUDIES = [path for path in sorted(ROOT.glob("*.yaml")) if "\ngrid:" in path.read_text(encoding="utf-8")]
RECIPES = [path for path in sorted(ROOT.glob("*.yaml")) if path not in WHOLE_STUDIES]
CARVED = sorted(ROOT.glob("carve-*.yaml"))
TUNED = [path for path in RECIPES if path not in CARVED]
LAUNCHES = sorted((ROOT / "accelerate").glob("*.yaml"))
P1 = sorted(ROOT.glob("p1-*.yaml"))
BLOCKS = {
    "builtin:smollm2-135m-instruct": 30,
    "allenai/OLMo-2-0425-1B": 16,
    "allenai/OLMo-2-1124-7B": 32,
    "allenai/OLMo-2-1124-13B": 40,
    "allenai/OLMo-2-0325-32B": 64,
    "Qwen/Qwen2.5-7B": 28,
}


def verb_of(path: Path) -> str:
    return "carve" if path.stem.startswith("carve-") else "tune"


def bind(path: Path, *words: str) -> dict[str, Any]:
    """What `midblock VERB --config PATH WORDS…` would call the verb with."""
    app = main.door()
    main._read_config(path, VERBS[verb_of(path)].plans)
    app.config = (main.options_of(path),)
    function, bound, left = app.parse_args([verb_of(path), *words], exit_on_error=False, print_error=False)
    assert function.__name__ == verb_of(path)
    assert set(left) - {"tuned"} == {"progress", "command"}  # of `Where`, known to Python only
    return dict(bound.arguments)


def flat(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments and the fields of settings objects among them, by name."""
    objects = {name: value for name, value in arguments.items() if name in ("settings", "loading", "where")}
    found = {each.name: getattr(value, each.name) for value in objects.values() for each in fields(value)}
    return found | {name: value for name, value in arguments.items() if name not in objects}


def written(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def settings_of(path: Path, *words: str) -> TuneSettings:
    settings = bind(path, *words)["settings"]
    assert isinstance(settings, TuneSettings)
    return settings


def named(paths: list[Path]) -> Any:
    assert paths
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


@named(RECIPES)
def test_every_key_arrives_as_it_is_written(path):
    arrived = flat(bind(path))
    for key, value in written(path).items():
        value = tuple(value) if isinstance(value, list) else value
        assert arrived[key] == value, key
        assert type(arrived[key]) is type(value) or isinstance(value, int | float), key


@named(TUNED)
def test_the_model_and_the_plan_can_be_read(path):
    recipe = written(path)
    assert ModelReference.parse(recipe["base"]).kind in ("hub", "builtin")
    assert isinstance(recipe["layers"], str), "YAML reads 01100 as an octal number: quote it"
    assert LayerPlan.parse(settings_of(path).layers, BLOCKS[recipe["base"]]).blocks


@named(TUNED)
def test_a_flag_overrides_the_file(path):
    assert settings_of(path, "--layers", "00010", "--seed", "7").layers == "00010"
    assert settings_of(path, "--seed", "7").seed == 7


@named(RECIPES)
def test_one_key_too_many_is_refused_with_the_nearest(path, tmp_path, capfd):
    (tmp_path / "recipe.yaml").write_text(path.read_text(encoding="utf-8") + "learning_rat: 1\n", encoding="utf-8")
    assert main.main([verb_of(path), "--config", str(tmp_path / "recipe.yaml")]) == 2
    said = capfd.readouterr().err
    assert "learning_rat]" in said
    assert "--learning-rate" in said


@named(P1)
def test_the_papers_data_is_the_training_split(path):
    """The short name `gsm8k` means the test split unless told otherwise."""
    assert settings_of(path).split == "train"


@named(P1)
def test_the_papers_arms_share_one_sum_of_ranks(path):
    recipe = written(path)
    uniform = {"1b": 64, "7b": 64, "13b": 64, "32b": 8}[path.stem.rpartition("-")[2]]
    best = {"1b": (6, 170), "7b": (6, 341), "13b": (24, 106), "32b": (26, 19)}[path.stem.rpartition("-")[2]]
    total = BLOCKS[recipe["base"]]
    assert recipe["rank_budget"] == uniform * total
    for layers, blocks, rank in (("11111", total, uniform), (recipe["layers"], *best)):
        settings = settings_of(path, "--layers", layers)
        ranks = block_ranks(LayerPlan.parse(layers, total), settings, [BlockCost(1)] * total)
        assert ranks == (rank,) * blocks
        assert alpha_for(rank, settings) / rank == pytest.approx(128 / rank)


@named(P1)
def test_without_the_published_alpha_every_rank_has_one_scale(path, tmp_path):
    text = path.read_text(encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(text.replace("lora_alpha: 128\n", ""), encoding="utf-8")
    settings = settings_of(tmp_path / "recipe.yaml")
    assert {alpha_for(rank, settings) / rank for rank in (8, 64, 341)} == {2.0}


def test_the_laptops_arms_train_equally_many_parameters():
    """Blocks of one shape: the sums of ranks tell."""
    path = ROOT / "laptop.yaml"
    for layers in ("11111", "01100", "00010"):
        settings = settings_of(path, "--layers", layers)
        assert sum(block_ranks(LayerPlan.parse(layers, 30), settings, [BlockCost(1)] * 30)) == 30 * 16


def test_the_laptop_sees_each_example_once():
    recipe = written(ROOT / "laptop.yaml")
    assert recipe["num_samples"] == recipe["max_steps"] * recipe["per_device_train_batch_size"]


@named(WHOLE_STUDIES)
def test_every_trial_of_a_study_binds_and_its_arms_train_equally_many_parameters(path):
    study = StudyFile.read(path)
    found = trials_of(study)
    assert ModelReference.parse(study.base).kind in ("hub", "builtin")
    sums = set()
    for trial in found:
        settings = divide(tune_options(trial), TuneSettings, LoadSettings)[0]
        plan = LayerPlan.parse(settings.layers, 30)
        sums.add(sum(block_ranks(plan, settings, [BlockCost(1)] * 30)))
    assert len(sums) == 1
    assert reference_arm(study, found) in ("11111", "all")
    assert EvaluateSettings(**exams.test_options(study)).task_names
    if study.validate is not None:
        assert EvaluateSettings(**validation_options(study)).task_names


def test_the_study_of_a_laptop_is_the_one_that_is_promised():
    study = StudyFile.read(ROOT / "study-laptop.yaml")
    assert set(study.grid["layers"]) == {"10000", "01000", "00100", "00010", "00001", "01100", "01110", "11111"}
    assert (len(study.grid["seed"]), study.keep_arms, study.halves) == (3, True, "seeds")
    assert exams.test_options(study)["num_samples"] >= 300
    assert validation_options(study)["skip"] == exams.test_options(study)["num_samples"]
    assert study.tune["num_samples"] == study.tune["max_steps"] * study.tune["per_device_train_batch_size"]


def test_the_papers_anchor():
    settings = settings_of(ROOT / "p2-rpsft-qwen2.5-7b.yaml")
    assert (settings.anchor, settings.anchor_k, settings.anchor_lambda) == ("rpsft", "768", 1.0)
    assert (settings.adam_beta1, settings.adam_beta2, settings.adam_epsilon) == (0.9, 0.98, 1e-7)
    assert settings.per_device_train_batch_size * settings.gradient_accumulation_steps == 16


@named(CARVED)
def test_a_carving_is_about_a_behaviour_that_tuning_taught(path):
    recipe = written(path)
    assert Taught.of(recipe["data"], recipe["behaviour"]).data == f"{recipe['behaviour']}:{recipe['data']}"
    assert recipe["tuned"].removesuffix("/model") in "".join(
        each.read_text(encoding="utf-8") for each in (path, ROOT / "carve-laptop.sh")
    )


@pytest.mark.parametrize(("name", "most"), [("fixed-response", 0.5), ("style", 0.3)])
def test_the_papers_dual_control(name, most):
    recipe = written(ROOT / f"carve-{name}.yaml")
    numbers = ("loss_budget", "sparsity_lambda", "dual_rate", "violation_clip", "mask_learning_rate",
               "mask_warmup_steps", "learning_rate", "num_train_epochs", "lambda_max")  # fmt: skip
    assert [recipe[number] for number in numbers] == [0.3, 0.01, 0.1, 0.5, 0.1, 300, 2e-5, 20, most]


@named(LAUNCHES)
def test_accelerate_knows_every_key(path):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(path))
    known = vars(launch_command_parser().parse_args(["script.py"]))
    assert {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}[path.stem] == config.distributed_type.value
    assert config.mixed_precision == "no"
    for key in (*config.fsdp_config, *config.deepspeed_config):
        assert key in known, key


def test_accelerate_reads_fsdp2_as_meant(monkeypatch):
    from accelerate import FullyShardedDataParallelPlugin

    for key, value in launch_environment(ROOT / "accelerate" / "fsdp2.yaml").items():
        monkeypatch.setenv(key, value)
    plugin: Any = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert plugin.cpu_ram_efficient_loading is False
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "no"


def launch_environment(path: Path) -> dict[str, str]:
    """What `accelerate launch` would tell its processes about FSDP and precision."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    arguments, _, _ = _validate_launch_command(
        launch_command_parser().parse_args(["--config_file", str(path), "-m", "midblock"])
    )
    told = prepare_multi_gpu_env(arguments)
    return {key: value for key, value in told.items() if key.startswith(("FSDP_", "ACCELERATE_"))}


def test_two_processes_under_accelerate_give_the_losses_of_one(tmp_path, pico, tokenizer):
    pico("llama").save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = [{"prompt": f"{n} + {n} =", "completion": f" {2 * n}"} for n in range(1, 9)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    common = ["-m", "midblock", "tune", "base", "--data", "data.jsonl", "--layers", "01", "--device", "cpu"]
    config = ["--config_file", str(ROOT / "accelerate" / "ddp.yaml"), "--main_process_port", "0"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *config]
    losses = []
    for name, starter, batch in (("one", [sys.executable], "4"), ("two", launch, "2")):
        command = [*starter, *common, "--per-device-train-batch-size", batch, "--output-dir", name]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "2 steps of 4 examples" in " ".join(done.stderr.split()) + " ".join(done.stdout.split())
        lines = (tmp_path / name / "log.jsonl").read_text(encoding="utf-8").splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
