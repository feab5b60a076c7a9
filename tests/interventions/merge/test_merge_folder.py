"""The folder a merge leaves: what lies beside the weights, and what happens when one stands there already."""

import json

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from midblock.base import LayerTable, MidblockError
from midblock.checkpoints import open_checkpoint
from midblock.interventions import merge
from midblock.runs.record import read_record


@pytest.fixture
def parents(tmp_path, pico, tuned_from, tokenizer):
    base = pico("llama")
    base.save_pretrained(tmp_path / "base")
    tuned_from(base).save_pretrained(tmp_path / "tuned")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base", tmp_path / "tuned"


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_run_folder(parents, tmp_path):
    base, tuned = parents
    told = []

    class Heard:
        def phase(self, title, total):
            told.append(total)
            return lambda amount: told.append(-amount)

    command = "midblock merge base tuned"
    out = merge(base, tuned, "0,1", output_dir=tmp_path / "out", command=command, weight_hashes=True, progress=Heard())
    record = read_record(out)
    assert (record["verb"], record["status"], record["command"]) == ("merge", "done", command)
    assert [(each["name"], each["role"]) for each in record["models"]] == [("base", "base"), ("tuned", "tuned")]
    assert record["models"][0]["weight_hash"] == open_checkpoint(str(base)).weight_hash()
    assert "weights" in record["phases"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["alphas"] == [0.0, 0.5, 1.0]
    assert (summary["embedding"], summary["head"], summary["models"]) == (0.0, 1.0, [])
    assert (summary["base"], summary["tuned"], summary["overrides"]) == ("base", "tuned", {})
    assert summary["headline"] == "tuned counts most, with alpha 1, in block 2; the mean over the blocks is 0.50."
    assert sum(told) == 0
    assert told[0] == summary["bytes"]
    table = LayerTable.read(out)
    assert list(table.curve("merge_alpha", "out", "block").layer) == [-1, 0, 1, 2, 3]
    config = yaml.safe_load((out / "config.yaml").read_text())
    again = merge(config.pop("base"), config.pop("tuned"), config.pop("alphas"), output_dir=tmp_path / "two", **config)
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("alphas", "apart", "said"),
    [
        (0.5, {}, "Every block takes 0.5 of tuned and 0.5 of the base."),
        (0, {"embedding_alpha": 1}, "Every block takes 0 of tuned and 1 of the base (the embedding 1)."),
        (
            "0,0.5,0.5",
            {"head_alpha": 1},
            "tuned counts most, with alpha 0.5, in blocks 1 to 2 (the head 1); the mean over the blocks is 0.33.",
        ),
    ],
)
def test_the_headline_names_what_takes_more_than_the_blocks(parents, tmp_path, alphas, apart, said):
    base, tuned = parents
    out = merge(base, tuned, alphas, output_dir=tmp_path / "out", **apart)
    assert json.loads((out / "summary.json").read_text())["headline"] == said


def test_a_folder_that_is_there(parents, tmp_path):
    base, tuned = parents
    out = merge(base, tuned, 0.5, output_dir=tmp_path / "out")
    before = contents(out)
    with pytest.raises(MidblockError, match="exists already"):
        merge(base, tuned, 0.5, output_dir=out)
    merge(base, tuned, 0.5, output_dir=out, resume=True)
    assert contents(out) == before
    with pytest.raises(MidblockError, match=r"alphas: '0\.5' then, '0\.75' now"):
        merge(base, tuned, 0.75, output_dir=out, resume=True)
    merge(base, tuned, 0.75, output_dir=out, overwrite=True)
    assert contents(out)["model.safetensors"] != before["model.safetensors"]
    (tuned / "model.safetensors").touch()
    with pytest.raises(MidblockError, match="the weights of tuned changed since"):
        merge(base, tuned, 0.75, output_dir=out, resume=True)


def test_resume_begins_an_unfinished_merge_anew(parents, tmp_path):
    base, tuned = parents
    out = merge(base, tuned, 0.5, output_dir=tmp_path / "out")
    before = contents(out)
    (out / "run.json").write_text(json.dumps({**read_record(out), "status": "running"}))
    (out / "model.safetensors").unlink()
    merge(base, tuned, 0.5, output_dir=out, resume=True)
    assert contents(out)["model.safetensors"] == before["model.safetensors"]
    assert read_record(out)["status"] == "done"


def test_a_checkpoint_of_the_users_own_is_not_overwritten(parents, tmp_path):
    base, tuned = parents
    before = contents(tuned)
    for out in (base, tuned):
        with pytest.raises(MidblockError, match="was not written by midblock"):
            merge(base, tuned, 0.5, output_dir=out, overwrite=True)
    assert contents(tuned) == before
    first = merge(base, tuned, 0.5, output_dir=tmp_path / "first")
    with pytest.raises(MidblockError, match=r"holds .*first itself"):
        merge(base, first, 0.5, output_dir=first, overwrite=True)


def test_a_merge_that_fails_leaves_what_was_there(parents, tmp_path):
    base, tuned = parents
    out = merge(base, tuned, 0.5, output_dir=tmp_path / "out")
    before = contents(out)
    file = tuned / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    for where in (out, tmp_path / "other"):
        with pytest.raises(MidblockError, match="truncated"):
            merge(base, tuned, 0.5, output_dir=where, overwrite=True)
    assert contents(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out", "tuned"]


def test_half_a_merge_of_a_killed_run_is_cleared_away(parents, tmp_path):
    base, tuned = parents
    left = tmp_path / ".out.999999999.partial" / "made"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    with pytest.raises(MidblockError, match=r"no config\.json"):
        open_checkpoint(str(left))
    merge(base, tuned, 0.5, output_dir=tmp_path / "out")
    assert not list(tmp_path.glob(".out*"))


def test_what_a_killed_merge_had_put_aside_comes_back(parents, tmp_path):
    base, tuned = parents
    out = merge(base, tuned, 0.5, output_dir=tmp_path / "out")
    before = contents(out)
    (tmp_path / ".out.999999999.partial").mkdir()
    out.rename(tmp_path / ".out.999999999.partial" / "before")
    (tmp_path / ".out.2.999999999.partial").mkdir()  # of another folder, `out.2`
    with pytest.raises(MidblockError, match="exists already"):
        merge(base, tuned, 0.75, output_dir=out)
    assert contents(out) == before
    assert [path.name for path in tmp_path.glob(".*")] == [".out.2.999999999.partial"]


def test_of_two_merges_at_once_the_later_is_refused(parents, tmp_path):
    base, tuned = parents
    out = tmp_path / "out"

    class Meanwhile:
        def phase(self, title, total):
            if not out.exists():
                out.mkdir()
                (out / "first").touch()
            return lambda amount: None

    with pytest.raises(MidblockError, match="written by another run meanwhile"):
        merge(base, tuned, 0.5, output_dir=out, progress=Meanwhile())
    assert [path.name for path in out.iterdir()] == ["first"]


def test_broken_files_of_the_tuned_tokenizer(parents, tokenizer, tmp_path):
    base, tuned = parents
    tokenizer.save_pretrained(tuned)
    (base / "generation_config.json").write_text('{"eos_token_id": 2}')
    (tuned / "generation_config.json").write_text("{")
    out = merge(base, tuned, 0.5, output_dir=tmp_path / "out")
    assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": 2}
    assert any("generation_config.json is broken" in note for note in read_record(out)["notes"])
    (tuned / "chat_template.jinja").unlink(missing_ok=True)
    (tuned / "tokenizer_config.json").write_text("[]")
    with pytest.raises(MidblockError, match=r"tokenizer_config\.json is no JSON object"):
        merge(base, tuned, 0.5, output_dir=tmp_path / "other")


def test_the_tuned_tokenizer_is_taken_where_its_ids_are_the_bases(parents, tokenizer, tmp_path):
    base, tuned = parents
    (base / "chat_template.jinja").write_text("base")
    note = "ships no tokenizer"
    out = merge(base, tuned, 0.5, output_dir=tmp_path / "one")
    assert AutoTokenizer.from_pretrained(out).chat_template == "base"
    assert any(note in each for each in read_record(out)["notes"])
    tokenizer.save_pretrained(tuned)
    out = merge(base, tuned, 0.5, output_dir=tmp_path / "two")
    assert AutoTokenizer.from_pretrained(out).chat_template == "base"  # the tuned model has none of its own
    settings = json.loads((tuned / "tokenizer_config.json").read_text())
    (tuned / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "tuned"}))
    (tuned / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    out = merge(base, tuned, 0.5, output_dir=tmp_path / "three")
    assert AutoTokenizer.from_pretrained(out).chat_template == "tuned"
    assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": [2, 7]}
    assert any("are the tuned model's" in each for each in read_record(out)["notes"])


def test_a_tokenizer_of_other_ids_is_left_out(parents, tokenizer, tmp_path):
    base, tuned = parents
    tokenizer.save_pretrained(tuned)
    file = tuned / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(content))
    out = merge(base, tuned, 0.5, output_dir=tmp_path / "out")
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert any("shared tokens have other ids" in note for note in read_record(out)["notes"])


def test_a_merge_is_a_model_reference_and_can_be_merged_again(parents, tmp_path):
    base, tuned = parents
    half = merge(base, tuned, 0.5, output_dir=tmp_path / "half")
    quarter = merge(base, half, 0.5, output_dir=tmp_path / "quarter")
    name = "model.layers.1.mlp.up_proj.weight"
    one, two, out = (open_checkpoint(str(each)).tensors().read(name) for each in (base, tuned, quarter))
    torch.testing.assert_close(out, 0.75 * one + 0.25 * two)
