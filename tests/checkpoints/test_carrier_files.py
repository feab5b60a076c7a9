"""A carrier's folder: what was written is read, and whatever is damaged is named before anything is applied."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from midblock import MidblockError
from midblock.checkpoints import (
    Carrier,
    Entries,
    LoadSettings,
    ModelReference,
    load_model,
    load_models,
    open_checkpoint,
    write_carrier,
)

from ..conftest import make_tuned
from .carving import on_disk, planted, same, values_of

HELD = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def carved(saved, pico, tmp_path):
    """A base's folder, and a carrier's of two parameters."""
    model = pico("llama")
    base = saved(model, "base")
    tuned = make_tuned(model)
    entries = planted(tuned, moves=lambda name: name in (HELD, "model.norm.weight"))
    return base, on_disk(tmp_path / "carrier", base, tuned, entries)


def test_what_was_written_is_read(carved, pico):
    _, written = carved
    carrier, tuned = Carrier.open(written.folder), make_tuned(pico("llama"))
    assert set(carrier.names) == {HELD, "model.norm.weight"}
    for name, each in planted(tuned, moves=carrier.names.__contains__).items():
        found = carrier.entries(name)
        assert torch.equal(found.values, each.values)
        assert all(torch.equal(one, other) for one, other in zip(found.indices, each.indices, strict=True))
    assert {key: mask.tolist() for key, mask in carrier.masks.items()} == {(0, "q"): [True, False]}
    assert carrier.config.made == {"method": "planted"}
    entries = [carrier.entries(name) for name in carrier.names]
    assert carrier.nbytes == sum(4 * each.count + 4 * sum(map(len, each.indices)) for each in entries)


def test_entries_in_a_box_are_those_of_the_whole():
    stream = torch.Generator().manual_seed(0)
    whole, base = torch.randn(4, 6, 5, generator=stream), torch.zeros(4, 6, 5)
    for kept in ((None, [1, 4], [0, 2, 3]), ([0, 3], None, [4]), ([2], [0, 5], None), ([1, 2], [3], [1])):
        entries = Entries.of(whole, tuple(None if each is None else torch.tensor(each) for each in kept))
        placed = entries.place(base)
        assert torch.equal(entries.as_matrix((4, 6, 5)).place(base.view(24, 5)), placed.view(24, 5))
        for region in ((2, (0, 6), (0, 5)), ((1, 4), (2, 5), (0, 3)), ((0, 4), 4, (1, 5)), ((0, 1), (0, 1), (0, 1))):
            box = placed[tuple(side if isinstance(side, int) else slice(*side) for side in region)]
            assert torch.equal(entries.cut(region, (4, 6, 5)).place(torch.zeros_like(box)), box)


def rewrite(carrier, **changes):
    file = carrier.folder / "carrier.safetensors"
    tensors = {name: value for name, value in {**load_file(file), **changes}.items() if value is not None}
    save_file(tensors, file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)  # the old file is mapped


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (f"{HELD}.0", lambda index: torch.cat([index[:-1], torch.tensor([48], dtype=torch.int32)]), "the index 48"),
        (f"{HELD}.0", lambda index: index - index[0] - 1, "the index -1"),
        (f"{HELD}.1", lambda index: index.flip(0), "is not ascending"),
        (f"{HELD}.1", lambda index: torch.cat([index[:1], index[:-1]]), "is repeated"),
        (f"{HELD}.1", lambda index: index.long(), "no vector of int32"),
        (f"{HELD}.1", lambda index: None, r"its indices are for \[\d+, 32\]"),
        (f"{HELD}.values", lambda values: values[1:], "its indices are for"),
        (f"{HELD}.values", lambda values: values.clone().fill_(float("nan")), "NaN or Inf"),
        (f"{HELD}.values", lambda values: values.to(torch.int32), "floating-point"),
        (f"{HELD}.values", lambda values: None, f"lacks {HELD}.values"),
        ("mask.0.q", lambda mask: mask + 1, "no vector of 0 and 1"),
        ("mask.q", lambda mask: torch.ones(1, dtype=torch.uint8), "no mask of a layer and a group"),
        ("model.more.values", lambda none: torch.ones(2), "'model.more.values', which its config does not name"),
    ],
)
def test_damaged_tensors_are_named(name, change, said, carved):
    _, carrier = carved
    rewrite(carrier, **{name: change(load_file(carrier.folder / "carrier.safetensors").get(name))})
    with pytest.raises(MidblockError, match=said) as caught:
        Carrier.open(carrier.folder)
    assert "\n" not in str(caught.value)
    assert str(carrier.folder) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("carrier_format", 2, "the carrier format 2, this midblock reads 1"),
        ("carrier_format", True, "the carrier format True"),
        ("base", 3, "base is 3"),
        ("base_hash", "abc", "base_hash is 'abc'"),
        ("tuned", None, "tuned is not there"),
        ("shapes", {HELD: [48, 0]}, "list of sizes"),
        ("shapes", {}, "holds no entries"),
        ("made", [1], "made is"),
        ("parts", {"head": "lm_head"}, "where the decoder's head, embedding"),
    ],
)
def test_a_damaged_config_is_named(key, value, said, carved):
    _, carrier = carved
    file = carrier.folder / "carrier_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(MidblockError, match=said):
        Carrier.open(carrier.folder)


def test_files_that_are_cut_or_missing_are_named(carved):
    _, carrier = carved
    weights = carrier.folder / "carrier.safetensors"
    whole = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(whole[:-5])
    with pytest.raises(MidblockError, match=r"carrier\.safetensors is truncated"):
        Carrier.open(carrier.folder)
    weights.unlink()
    with pytest.raises(MidblockError, match=r"cannot read .*carrier\.safetensors"):
        open_checkpoint(str(carrier.folder))


def test_nothing_kept_and_names_of_the_file_are_not_written(carved, tmp_path):
    _, carrier = carved
    with pytest.raises(MidblockError, match="no entry: all masks are off"):
        write_carrier(tmp_path / "none", {}, {}, carrier.config)
    clash = {"mask.0.q": carrier.entries("model.norm.weight")}
    with pytest.raises(MidblockError, match=r"cannot hold a parameter called mask\.0\.q"):
        write_carrier(tmp_path / "none", clash, {}, carrier.config)
    assert not (tmp_path / "none").exists()


def test_another_base_is_refused_with_both_named(carved, saved, pico):
    base, carrier = carved
    other = saved(make_tuned(pico("llama"), seed=9), "other")
    for reference in (f"{other}+{carrier.folder}", f"{other}+{carrier.folder}+{carrier.folder}"):
        with pytest.raises(MidblockError, match=r"carved from .*base .*, .*other has other weights") as caught:
            open_checkpoint(reference)
        assert "\n" not in str(caught.value)
    with pytest.raises(MidblockError, match="has other weights"):
        load_models(str(other), str(carrier.folder))
    assert open_checkpoint(str(carrier.folder)).weight_hash() != open_checkpoint(str(base)).weight_hash()


def test_a_base_that_has_not_what_is_carried_is_refused(carved, pico, saved):
    base, carrier = carved
    norm = carrier.entries("model.norm.weight")
    config = replace(carrier.config, shapes={"model.norms.weight": (32,)})
    write_carrier(carrier.folder, {"model.norms.weight": norm}, {}, config)
    checkpoint = open_checkpoint(f"{base}+{carrier.folder}")
    with pytest.raises(MidblockError, match=r"changes model\.norms\.weight, which"):
        load_model(checkpoint, LoadSettings())


def test_references(carved, tmp_path, monkeypatch):
    base, carrier = carved
    monkeypatch.chdir(tmp_path)
    found = ModelReference.parse("base+carrier")
    assert (found.kind, found.location, found.label) == ("sum", "base", "base+carrier")
    assert [term.location for term in found.added] == ["carrier"]
    assert {path.name for path in found.places} == {"base", "carrier"}
    assert ModelReference.parse("builtin:smollm2-135m-instruct+carrier").location == "builtin:smollm2-135m-instruct"
    assert ModelReference.parse("org/name@rev+carrier").model.revision == "rev"
    assert ModelReference.parse("carrier").kind == "carrier"
    alone = open_checkpoint("carrier")
    assert (alone.folder, alone.name, len(alone.carriers)) == (base, "carrier", 1)
    assert alone.weight_hash() == open_checkpoint("base+carrier").weight_hash()

    # a plus in a name on disk is part of the name
    carrier.folder.rename(tmp_path / "c+c")
    base.rename(tmp_path / "base+c")
    found = ModelReference.parse("base+c+c+c")
    assert (found.location, [term.location for term in found.added]) == ("base+c", ["c+c"])
    assert len(open_checkpoint("base+c+c+c").carriers) == 1
    (tmp_path / "base+c").rename(tmp_path / "base+c+c+c")
    assert ModelReference.parse("base+c+c+c").kind == "folder"


@pytest.mark.parametrize("text", ["c++", "+", "base+", "+carrier", "base+nowhere", "nowhere+carrier", "base+base"])
def test_no_sum(text, carved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MidblockError) as caught:
        open_checkpoint(text)
    assert "\n" not in str(caught.value)


def test_a_run_folder_that_holds_a_carrier_is_a_model(carved, tmp_path, pico):
    base, carrier = carved
    run = tmp_path / "carved"
    run.mkdir()
    (run / "run.json").write_text("{}")
    carrier.folder.rename(run / "carrier")
    checkpoint = open_checkpoint(f"{base}+{run}")
    assert (checkpoint.name, checkpoint.carriers[0].folder) == ("base+carved", run / "carrier")
    assert not same(load_model(checkpoint, LoadSettings()), values_of(pico("llama")))
    assert {path.name for path in checkpoint.places} >= {"base", "carrier"}
