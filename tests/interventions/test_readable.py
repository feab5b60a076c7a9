"""The run folder of an intervention: refused early, resumed to the bit, and models given back as they came."""

import json
from functools import partial

import pytest
import torch
import yaml

from midblock.base import LayerTable, MidblockError
from midblock.checkpoints import Pair, load_pair
from midblock.interventions import probe, swap
from midblock.runs.record import read_record
from midblock.trace import Pieces

OPTIONS = {
    probe: {"num_samples": 8, "batch_tokens": 200},
    swap: {"num_samples": 8, "batch_tokens": 200, "segments": "2"},
}
WRITTEN = {"generate": True, "generate_samples": 3, "max_new_tokens": 4}
VERBS = pytest.mark.parametrize("verb", [probe, swap], ids=["probe", "swap"])


@pytest.fixture
def data(tmp_path):
    """Writes prompts with answers; `word` makes others."""

    def write(word="plus"):
        lines = ({"prompt": f"{n} {word} {n * n} is", "completion": str(n + n * n)} for n in range(8))
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(tmp_path / "data.jsonl")

    return write


@pytest.fixture
def folders(taught, saved):
    return saved(taught[0], "start"), saved(taught[1], "sft")


def saved_at_every_step(store, folder, seconds, owner):
    return Pieces(store, folder, 0.0, owner)


class StopAfter:
    """Progress that gives up after so many steps, as a person pressing Ctrl-C does."""

    def __init__(self, steps):
        self.left = steps

    def phase(self, title, total):
        return self.advance if title in ("probing", "swapping") else lambda amount: None

    def advance(self, amount):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


class Count(StopAfter):
    def __init__(self):
        self.left = 0


class Never:
    """Progress that nothing may come to."""

    def phase(self, title, total):
        raise AssertionError(title)


@VERBS
def test_a_killed_run_ends_with_the_same_numbers(folders, data, tmp_path, monkeypatch, verb):
    monkeypatch.setattr("midblock.runs.steps.Pieces", saved_at_every_step)
    pair = load_pair(*folders, device="cpu")
    again = partial(verb, pair, data(), **OPTIONS[verb], **WRITTEN)
    counted = Count()
    whole = again(output_dir=tmp_path / "whole", progress=counted)
    steps = -counted.left
    assert steps > 6
    for killed in (1, steps - 2, steps):
        run = tmp_path / f"run{killed}"
        with pytest.raises(KeyboardInterrupt):
            again(output_dir=run, progress=StopAfter(killed))
        assert read_record(run)["status"] == "running"
        assert not (run / "layers.parquet").exists()
        assert len(list((run / "partial").iterdir())) == killed
        with pytest.raises(MidblockError, match="exists already"):
            again(output_dir=run)
        with pytest.raises(MidblockError, match="made with other settings: seed: 0 then, 1 now"):
            again(output_dir=run, resume=True, seed=1)
        # killed a second time, then left alone
        if killed == 1:
            with pytest.raises(KeyboardInterrupt):
                again(output_dir=run, resume=True, progress=StopAfter(3))
        assert again(output_dir=run, resume=True).frame.equals(whole.frame)
        for name in ("layers.parquet", "layers.csv", "summary.json", "cells.csv"):
            if (tmp_path / "whole" / name).exists():
                assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        assert read_record(run)["status"] == "done"
        assert not (run / "partial").exists()


@VERBS
def test_pieces_are_not_believed(folders, data, tmp_path, monkeypatch, verb):
    monkeypatch.setattr("midblock.runs.steps.Pieces", saved_at_every_step)
    again = partial(verb, load_pair(*folders, device="cpu"), **OPTIONS[verb] | {"batch_tokens": 1})
    runs = {word: tmp_path / word for word in ("plus", "and")}
    for word, run in runs.items():
        with pytest.raises(KeyboardInterrupt):
            again(data(word), output_dir=run, progress=StopAfter(5))
    theirs, second = (run / "partial" / "000002.safetensors" for run in runs.values())
    whole = again(data("and"), output_dir=tmp_path / "whole")
    kept = second.read_bytes()
    second.write_bytes(theirs.read_bytes())
    with pytest.raises(MidblockError, match=r"000002.safetensors was kept by another run, .*remove it, or begin"):
        again(data("and"), output_dir=runs["and"], resume=True)
    second.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    assert again(data("and"), output_dir=runs["and"], resume=True).frame.equals(whole.frame)
    assert any("from step 2 on it was done again" in note for note in read_record(runs["and"])["notes"])


@VERBS
def test_a_finished_run_is_read_not_made_again(folders, data, tmp_path, verb):
    run, options = tmp_path / "run", OPTIONS[verb]
    path = data()
    table = verb(load_pair(*folders, device="cpu"), path, output_dir=run, **options)
    assert LayerTable.read(run).frame.equals(table.frame)
    (tmp_path / "data.jsonl").unlink()
    again = load_pair(*folders, device="cpu")
    read = verb(again, path, output_dir=run, resume=True, progress=Never(), **options)
    assert read.frame.equals(table.frame)
    assert [variant.loaded for variant in again] == [None, None]


@VERBS
def test_a_folder_is_refused_before_anything_is_read(folders, data, tmp_path, verb):
    run, options = tmp_path / "run", OPTIONS[verb]
    path = data()
    verb(load_pair(*folders, device="cpu"), path, output_dir=run, **options)
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    (tmp_path / "data.jsonl").unlink()
    again = load_pair(*folders, device="cpu")
    for change, message in (
        ({}, "exists already"),
        ({"resume": True, "max_length": 99}, "made with other settings: max_length: 256 then, 99 now"),
        ({"resume": True, "overwrite": True}, "exclude each other"),
    ):
        with pytest.raises(MidblockError, match=message):
            verb(again, path, output_dir=run, progress=Never(), **(options | change))
    assert [variant.loaded for variant in again] == [None, None]
    with pytest.raises(MidblockError):  # the data are gone: the older run stays
        verb(again, path, output_dir=run, overwrite=True, **options)
    assert {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()} == before


@VERBS
def test_a_mistake_leaves_the_older_run(folders, data, tmp_path, verb, pico, saved):
    run, options = tmp_path / "run", OPTIONS[verb]
    path = data()
    verb(load_pair(*folders, device="cpu"), path, output_dir=run, **options)
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    mistakes = [(folders, {**WRITTEN, "reader": "first_lime"}, "unknown reader 'first_lime'")]
    if verb is swap:
        wide = saved(pico("llama", intermediate_size=64), "wide")
        mistakes.append(((folders[0], wide), {}, r"mlp\.gate_proj\.weight is"))
    else:
        mistakes.append((folders, {**WRITTEN, "generate_layers": "9"}, "the layer plan '9'"))
        bare = saved(pico("opt", do_layer_norm_before=False), "bare")
        mistakes.append(((bare, bare), {}, "no final norm found"))
    for models, change, message in mistakes:
        with pytest.raises(MidblockError, match=message):
            verb(load_pair(*models, device="cpu"), path, output_dir=run, overwrite=True, **(options | change))
        assert {file.name: file.read_bytes() for file in run.iterdir()} == before


@VERBS
def test_what_changed_is_named(taught, folders, data, saved, tmp_path, monkeypatch, verb):
    monkeypatch.setattr("midblock.runs.steps.Pieces", saved_at_every_step)
    pair = load_pair(*folders, device="cpu")
    again = partial(verb, pair, data(), output_dir=tmp_path / "run", **OPTIONS[verb])
    with pytest.raises(KeyboardInterrupt):
        again(progress=StopAfter(1))
    data("and")
    with pytest.raises(MidblockError, match=r"the data changed since \(--overwrite measures it anew\)"):
        again(resume=True)
    data()
    saved(taught[0], "sft")
    with pytest.raises(MidblockError, match=r"the weights of sft changed since \(--overwrite"):
        again(resume=True)


def test_models_in_memory_are_not_resumed(taught, tokenizer, sums, tmp_path):
    pair = Pair.of_models(taught[0], {"sft": taught[1]}, tokenizer)
    probe(pair, sums, output_dir=tmp_path / "run", resume=True)  # there is nothing yet
    with pytest.raises(MidblockError, match=r"base is a model in memory.* \(--overwrite measures it anew\)"):
        probe(pair, sums, output_dir=tmp_path / "run", resume=True)
    with pytest.raises(MidblockError, match=r"holds a run of `midblock probe`, not of `swap`"):
        swap(pair, sums, output_dir=tmp_path / "run", segments="3", resume=True)
    table = swap(pair, sums, output_dir=tmp_path / "run", segments="3", overwrite=True)
    assert LayerTable.read(tmp_path / "run").frame.equals(table.frame)


class NoMemory:
    def phase(self, title, total):
        if title in ("probing", "swapping"):
            raise torch.OutOfMemoryError
        return lambda amount: None


@VERBS
def test_models_come_back_in_their_own_mode(pico, tuned_from, tokenizer, sums, verb):
    base = pico("llama", attention_dropout=0.5).train()
    base.model.layers[1].eval()
    tuned = tuned_from(base).train()
    modes = [module.training for model in (base, tuned) for module in model.modules()]
    pair = Pair.of_models(base, {"sft": tuned}, tokenizer)
    options = {} if verb is probe else {"segments": "3"}
    first = verb(pair, sums, **options)
    assert verb(pair, sums, **options).frame.equals(first.frame)  # nothing is dropped while it is measured
    assert [module.training for model in (base, tuned) for module in model.modules()] == modes
    with pytest.raises(MidblockError, match=r"out of memory .*--batch-tokens.*--resume goes on"):
        verb(pair, sums, progress=NoMemory(), **options)
    with pytest.raises(KeyboardInterrupt):
        verb(pair, sums, progress=StopAfter(1), **options)
    assert [module.training for model in (base, tuned) for module in model.modules()] == modes


@VERBS
def test_an_unknown_option_names_the_nearest(taught, tokenizer, verb):
    pair = Pair.of_models(taught[0], {"sft": taught[1]}, tokenizer)
    with pytest.raises(MidblockError, match=r"^unknown option 'num_sample' \(did you mean 'num_samples'\?\)"):
        verb(pair, "no such data", num_sample=4)


@VERBS
def test_the_record_and_the_config(folders, data, tmp_path, verb, sums):
    pair, path = load_pair(*folders, device="cpu"), data()
    options = OPTIONS[verb]
    verb(pair, path, output_dir=tmp_path / "run", command="midblock it", **options)
    record = read_record(tmp_path / "run")
    assert (record["verb"], record["status"], record["command"]) == (verb.__name__, "done", "midblock it")
    assert {name: phase["seconds"] >= 0 for name, phase in record["phases"].items()} == {"measure": True, "write": True}
    assert [model["role"] for model in record["models"]] == ["base", "tuned"]
    assert all(len(model["weight_hash"]) == 64 for model in record["models"])
    assert record["data"]["reference"] == path
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["base"], config["data"], config["num_samples"], config["dtype"]) == (folders[0], path, 8, "float32")
    assert folders[1] in config["tuned"]  # the text of one, or a list
    assert set(options) <= set(config)
    verb(pair, sums, output_dir=tmp_path / "memory", **options)
    assert "data" not in yaml.safe_load((tmp_path / "memory" / "config.yaml").read_text())
    assert any("given in memory (builtin:chain_sum)" in note for note in read_record(tmp_path / "memory")["notes"])


def test_nothing_is_written_without_a_folder(taught, tokenizer, sums, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    probe(Pair.of_models(taught[0], {}, tokenizer), sums)
    assert list(tmp_path.iterdir()) == []


@VERBS
def test_data_without_answers_are_refused_before_models_are_loaded(folders, tmp_path, verb):
    options = {**OPTIONS[verb], "num_samples": 4}
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": f"How many are {n}?"}) + "\n" for n in range(4)))
    pair = load_pair(*folders, device="cpu")
    with pytest.raises(MidblockError, match=r"^only 0 of 4 examples of .* \(--region all counts every token\)$"):
        verb(pair, str(tmp_path / "texts.jsonl"), output_dir=tmp_path / "run", progress=Never(), **options)
    assert [variant.loaded for variant in pair] == [None, None]
    assert not (tmp_path / "run").exists()
    table = verb(pair, str(tmp_path / "texts.jsonl"), region="all", **options)
    assert set(table.frame.n) == {4}
