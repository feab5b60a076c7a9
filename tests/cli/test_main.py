import json
import re
import subprocess
import sys

import pytest

from midblock import __version__
from midblock.cli.main import main
from midblock.runs.verbs import VERBS


def test_help_lists_the_verbs(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out and verb.purpose in out for name, verb in VERBS.items())


def test_no_words_is_help(capsys):
    assert main([]) == 0
    assert "analyze" in capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(capsys, verb):
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"midblock {verb}" in out
    assert "None" not in out.split("Parameters")[0]


@pytest.mark.parametrize("verb", VERBS)
def test_help_breaks_no_name(capsys, monkeypatch, verb):
    names = []
    for width in ("80", "300"):
        monkeypatch.setenv("COLUMNS", width)
        assert main([verb, "--help"]) == 0
        names.append(set(re.findall(r"(?<!\S)--[\w-]+", capsys.readouterr().out)))
    assert names[0] == names[1]
    assert not [name for name in names[0] if name.startswith("--empty-")]


@pytest.mark.parametrize("verb", [name for name in VERBS if name != "doctor"])
def test_every_verb_that_writes_takes_the_short_option(capsys, verb):
    assert main([verb, "--help"]) == 0
    assert " -o " in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_an_unknown_verb_gets_the_nearest(failure):
    assert failure("analyse") == "midblock: unknown verb 'analyse' (did you mean 'analyze'?)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["analyze"], "midblock: BASE is missing (usage: midblock analyze [OPTIONS] BASE TUNED)"),
        (["analyze", "a"], "midblock: TUNED is missing (usage: midblock analyze [OPTIONS] BASE TUNED)"),
        (["tune", "a"], "midblock: --data is missing (usage: midblock tune --data STR [OPTIONS] BASE)"),
        (["tune", "a", "--data"], "midblock: --data wants a value (usage: "),
        (["export", "a"], "--output is missing"),
        (["doctor", "a", "-o", "b"], "Unknown option: -o. `midblock doctor --help` lists what there is."),
        (["report"], "run"),
        (["report", "a", "b"], "b"),
        (["analyze", "a", "b", "--seed", "two"], "seed"),
        (["analyze", "a", "b", "--num-sample", "8"], "--num-samples"),
        (["--config"], "--config wants a YAML file"),
        (["analyze", "--config", "/gone.yaml"], "cannot read /gone.yaml: No such file"),
    ],
)
def test_a_command_line_that_cannot_be_read(failure, arguments, message):
    assert message in failure(*arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "is no YAML"),
        ("- a\n- b\n", "holds no settings"),
        ("", "holds no settings"),
        ("just words", "holds no settings"),
        ("num_sample: 8\n", "num_sample"),
        ("base: a\ntuned: [b]\nnum_samples: many\n", "num"),
    ],
)
def test_a_config_that_cannot_be_used(failure, tmp_path, content, message):
    file = tmp_path / "config.yaml"
    file.write_text(content)
    assert message in failure("analyze", "a", "b", "--config", file)


def test_an_unknown_key_gets_the_nearest(failure, tmp_path):
    (tmp_path / "config.yaml").write_text("num_sample: 8\n")
    assert "num-samples" in failure("analyze", "a", "b", f"--config={tmp_path / 'config.yaml'}").replace("_", "-")


def test_the_door_from_outside():
    """As a shell meets it: exit codes, one line, nothing else."""
    command = [sys.executable, "-m", "midblock.cli.main"]
    done = subprocess.run([*command, "analyse"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "midblock: unknown verb 'analyse' (did you mean 'analyze'?)\n"
    gone = subprocess.run([*command, "report", "/gone"], capture_output=True, text=True, check=False)
    assert gone.returncode == 2
    assert gone.stderr.count("\n") == 1
    assert json.dumps(gone.stdout) == '""'


@pytest.mark.parametrize("text", ["tune: {lora_r: 4}", "3: 4", "layers: 00010"])
def test_settings_that_would_be_passed_over_or_misread(text, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(text)
    assert main(["tune", "--config", str(tmp_path / "config.yaml")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
