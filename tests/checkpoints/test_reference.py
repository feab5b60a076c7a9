import subprocess
import sys

import pytest

from midblock.base import MidblockError
from midblock.checkpoints.reference import ModelReference


def parse(text):
    return ModelReference.parse(str(text))


@pytest.mark.parametrize(
    ("text", "location", "revision", "label"),
    [
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B", None, "Qwen3-0.6B"),
        ("allenai/OLMo-2@stage1-step1000", "allenai/OLMo-2", "stage1-step1000", "OLMo-2@stage1-step1000"),
        ("a/b@refs/pr/1", "a/b", "refs/pr/1", "b@refs/pr/1"),
        ("  a/b.c_d-e ", "a/b.c_d-e", None, "b.c_d-e"),
    ],
)
def test_hub_names(text, location, revision, label):
    reference = parse(text)
    assert (reference.kind, reference.location, reference.revision) == ("hub", location, revision)
    assert reference.label == label


def test_builtin():
    reference = parse("builtin:smollm2-135m-instruct")
    assert (reference.kind, reference.label) == ("builtin", "smollm2-135m-instruct")
    with pytest.raises(MidblockError, match="did you mean 'smollm2-135m-instruct'"):
        parse("builtin:smollm-135m")


def test_what_exists_wins_over_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert parse("org/name").kind == "folder"
    (tmp_path / "org" / "name" / "adapter_config.json").write_text("{}")
    assert parse("org/name/").kind == "adapter"
    assert parse("org/name/").label == "name"
    (tmp_path / "model.Q4_1.gguf").touch()
    assert parse("model.Q4_1.gguf").kind == "gguf"
    assert parse("model.Q4_1.gguf").label == "model.Q4_1"
    monkeypatch.chdir(tmp_path / "org")
    assert parse(".").label == "org"


def test_missing_paths(tmp_path):
    (tmp_path / "tuned-model").mkdir()
    (tmp_path / "base.gguf").touch()
    with pytest.raises(MidblockError, match=r"did you mean .*tuned-model"):
        parse(tmp_path / "tuned-modle")
    with pytest.raises(MidblockError, match=r"did you mean .*base\.gguf"):
        parse(tmp_path / "bsae.gguf")
    with pytest.raises(MidblockError, match="nowhere does not exist"):
        parse(tmp_path / "nowhere" / "x" / "y")


@pytest.mark.parametrize(
    "text", ["", "gpt2", "a/b/c", "./x", "~/no-such-model", "a/b@", "a b/c", "runs/x.gguf", "a/b\n@c"]
)
def test_no_reference(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MidblockError):
        parse(text)


def test_single_files_are_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(MidblockError, match="give the folder"):
        parse(file)


def test_import_is_light():
    heavy = "{'transformers', 'peft', 'gguf'}"
    code = f"import sys, midblock.checkpoints.reference; print({heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
