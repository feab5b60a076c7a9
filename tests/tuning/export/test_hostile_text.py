"""A stranger's adapter is text: nothing in it becomes code, options or markup of what is written from it."""

import ast
import json

import pytest
import torch
import yaml
from safetensors.torch import save_file

from midblock.base import MidblockError
from midblock.cli.main import main
from midblock.tuning.export.export import export, run_export

PLAIN = {
    "peft_type": "LORA",
    "base_model_name_or_path": "org/name",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj"],
}
BREAKOUTS = [
    '"""\nimport os; os.system("touch HERE")\n"""',
    "'); __import__('os').system('touch HERE') #",
    "$(touch HERE) `touch HERE`",
    "\n---\nhooks: {a: !!python/object/apply:os.system ['touch HERE']}\n",
    "a\r\u2028\x85\x1b[31m\u202eb",
    "\\",
    "{{ cycler }} %s {0} $base ${base}",
]


@pytest.fixture
def stranger(tmp_path):
    """A run folder as someone sends it: an adapter, and a config.yaml beside it."""

    def write(config=None, settings=None):
        adapter = tmp_path / "run" / "adapter"
        adapter.mkdir(parents=True, exist_ok=True)
        head = "base_model.model.model.layers.0.self_attn.q_proj"
        save_file(
            {f"{head}.lora_A.weight": torch.ones(2, 4), f"{head}.lora_B.weight": torch.ones(4, 2)},
            adapter / "adapter_model.safetensors",
        )
        (adapter / "adapter_config.json").write_text(json.dumps({**PLAIN, **(config or {})}))
        (tmp_path / "run" / "run.json").write_text("{}")
        (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(settings or {}))
        return tmp_path / "run"

    return write


def script(folder, tmp_path, **options):
    return export(folder, tmp_path / "train.py", "trl", overwrite=True, **options).read_text()


def shape(text):
    """The script's tree with the values of constants left out: what it does, whatever it is about."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            node.value = None
    return ast.dump(tree)


def keywords(text, function):
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    call = next(node for node in calls if getattr(node.func, "id", None) == function)
    return {word.arg: word.value for word in call.keywords}


@pytest.mark.parametrize("text", BREAKOUTS, ids=ascii)
def test_values_stay_values_in_a_script(stranger, tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    settings = {"data": "d.jsonl", "split": "s", "optim": "o", "lr_scheduler_type": "l", "seed": 3}
    plain = script(stranger({"task_type": "T", "exclude_modules": ["e"]}, settings), tmp_path)
    hostile = {name: text if isinstance(value, str) else value for name, value in settings.items()}
    base = text if text.isprintable() else "start"  # of several lines it is refused
    config = {"task_type": text, "exclude_modules": [text], "base_model_name_or_path": base}
    made = script(stranger(config, hostile), tmp_path)
    assert shape(made) == shape(plain)
    said = {name: ast.literal_eval(value) for name, value in keywords(made, "LoraConfig").items()}
    assert said == {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "task_type": text, "exclude_modules": [text]}
    tree = ast.parse(made)
    constants = {each.targets[0].id: each.value for each in tree.body if isinstance(each, ast.Assign)}
    assert {name: ast.literal_eval(constants[name]) for name in ("BASE", "DATA")} == {"BASE": base, "DATA": text}
    assert ast.literal_eval(constants["SEED"]) == 3
    lora = next(each for each in tree.body if isinstance(each, ast.Assign) and each.targets[0].id == "peft_config")
    taken = {}
    exec(compile(ast.Module([lora], []), "script", "exec"), {"LoraConfig": lambda **given: taken.update(given)})  # noqa: S102
    assert taken == said
    assert not (tmp_path / "HERE").exists()


def test_a_base_by_the_command_line_stays_a_value(stranger, tmp_path):
    for name in (*BREAKOUTS, "builtin:x'); import os #"):
        made = script(stranger(), tmp_path, base=name)
        compile(made, "script", "exec")
        assert name in {node.value for node in ast.walk(ast.parse(made)) if isinstance(node, ast.Constant)}


@pytest.mark.parametrize("key", ['r=8); import os; os.system("touch HERE") #', "a b", "lambda", "x\ny", "ｒ", ""])
@pytest.mark.parametrize("to", ["trl", "axolotl", "lora-config"])
def test_a_key_that_is_no_option_is_refused_by_name(stranger, tmp_path, capsys, to, key):
    assert main(["export", str(stranger({key: 1})), "--to", to, "-o", str(tmp_path / "out.txt")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"adapter_config.json: {key!r}" in line
    assert "is no option of PEFT's" in line
    assert not (tmp_path / "out.txt").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": '0\nimport os; os.system("touch HERE")'},
        {"seed": "3"},
        {"seed": True},
        {"learning_rate": "1e-4"},
        {"learning_rate": float("nan")},
        {"max_steps": 2.5},
        {"template": ["raw"]},
        {"data": {"a": 1}},
        {"split": 3},
        {"num_samples": "all"},
        {"load_in_4bit": "no"},
        {"report_to": [1]},
    ],
    ids=str,
)
@pytest.mark.parametrize("to", ["trl", "axolotl"])
def test_a_setting_of_another_type_is_refused_by_name(stranger, tmp_path, to, settings):
    with pytest.raises(MidblockError, match=f"config.yaml: {next(iter(settings))} cannot be ") as error:
        export(stranger(settings=settings), tmp_path / "out.txt", to)
    assert "\n" not in str(error.value)


def test_a_number_that_no_program_knows_is_refused(stranger, tmp_path):
    for to in ("trl", "axolotl", "lora-config"):
        with pytest.raises(MidblockError, match="lora_dropout"):
            export(stranger({"lora_dropout": float("nan")}), tmp_path / "out.txt", to)
    with pytest.raises(MidblockError, match="lora_dropout cannot be"):
        export(stranger({"lora_dropout": 3.0}), tmp_path / "out.txt", "axolotl")


@pytest.mark.parametrize("text", BREAKOUTS, ids=ascii)
def test_values_stay_values_in_yaml_and_json(stranger, tmp_path, text):
    settings = {"data": text, "split": text, "optim": text, "lr_scheduler_type": text}
    base = text if text.isprintable() else "start"  # of several lines it is refused
    run = stranger({"base_model_name_or_path": base, "task_type": text}, settings)
    recipe = yaml.safe_load(export(run, tmp_path / "r.yaml", "axolotl", overwrite=True).read_text())
    assert recipe["base_model"] == base
    assert recipe["optimizer"] == recipe["lr_scheduler"] == text
    assert recipe["datasets"][0]["path"] == text.partition("@")[0]
    again = json.loads(export(run, tmp_path / "r.json", "lora-config", overwrite=True).read_text())
    assert (again["base_model_name_or_path"], again["task_type"]) == (base, text)


@pytest.mark.parametrize("text", [text for text in BREAKOUTS if not text.isprintable()], ids=ascii)
def test_a_base_of_several_lines_is_refused(stranger, tmp_path, text):
    with pytest.raises(MidblockError, match=r"base_model_name_or_path is .*a text of one line"):
        script(stranger({"base_model_name_or_path": text}), tmp_path)


def test_what_is_printed_moves_nothing(stranger, tmp_path, capsys):
    run = stranger(settings={"data": "\x1b[31mred\u202e", "anchor": "\x1b]0;x\x07"})
    assert main(["export", str(run), "--to", "axolotl", "-o", str(tmp_path / "a\x1b[2J.yaml")]) == 0
    said = capsys.readouterr().out
    assert "a\\x1b[2J.yaml" in said
    assert not set(said) & set("\x1b\x07\u202e")
    assert run_export(run, tmp_path / "b.yaml", "axolotl").notes
