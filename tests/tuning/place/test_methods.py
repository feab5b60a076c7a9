"""METHODS: what each way of changing weights says about itself is what it does."""

from dataclasses import fields

import pytest
import torch

from midblock.base import LayerPlan, MidblockError
from midblock.checkpoints import LoadSettings, ModelReference, open_checkpoint
from midblock.tuning.anchor.factors import factorize
from midblock.tuning.loop.sharding import gathered
from midblock.tuning.loop.tune_settings import TuneSettings
from midblock.tuning.place.methods import METHODS
from midblock.tuning.place.prepared import prepare
from midblock.tuning.settings import CourseSettings

OFFERED = [name for name, method in METHODS.items() if method.verb == "tune"]
LOADING = LoadSettings(device="cpu", dtype="float32")


@pytest.fixture(params=OFFERED)
def made(request, llama):
    """A method's name, and a pico model of which it trains the middle block."""
    settings = TuneSettings(method=request.param, layers="010", anchor="rpsft", anchor_k="8")
    return settings, prepare(open_checkpoint(str(llama)), LayerPlan.parse("010", 3), settings, LOADING)


def test_what_is_counted_is_what_is_trained(made):
    _, prepared = made
    count = sum(value.numel() for value in prepared.trained.values())
    assert sum(prepared.trainable.by_part.values()) == count > 0
    assert sum(target["parameters"] for target in prepared.trainable.targets()) == count
    assert {target["block"] for target in prepared.trainable.targets()} == {1}


def test_the_base_stays_where_the_table_says_so(made):
    settings, prepared = made
    own = {id(value) for name, value in prepared.causal.named_parameters() if ".lora_" not in name}
    touched = any(id(value) in own for value in prepared.trained.values())
    assert METHODS[settings.method].base_stays == (not touched)


def test_the_anchor_is_zero_on_the_pretrained_weights_and_not_beside_them(made):
    settings, prepared = made
    weights = prepared.trainable.anchored()
    assert all(".layers.1." in name for name in weights)
    factors = {name: factorize(value.detach(), 8, seed=0) for name, value in weights.items() if value.ndim == 2}
    anchor = prepared.trainable.anchor(factors, settings)
    assert float(anchor.value()) < 1e-9
    with torch.no_grad():
        for value in prepared.trained.values():
            value += 0.1
    assert float(anchor.value()) > 1e-3


def test_what_is_written_is_found_again(made, llama, tmp_path):
    settings, prepared = made
    trainable = prepared.trainable
    state = gathered(trainable.model, trainable.saved)
    trainable.write(tmp_path, state, open_checkpoint(str(llama)))
    found = open_checkpoint(str(tmp_path), adapter_base=str(llama))
    assert (found.adapter is not None) == METHODS[settings.method].base_stays


@pytest.mark.parametrize("name", OFFERED)
def test_options_of_one_method_are_refused_by_the_others(name):
    known = {each.name for each in fields(CourseSettings)}
    assert set(METHODS[name].options) <= known
    others = {"use_dora": True, "also": ("head",)}
    given = {option: value for option, value in others.items() if option not in METHODS[name].options}
    with pytest.raises(MidblockError, match=r"is about .* \(leave it out, or --method "):
        TuneSettings(method=name, **given)


@pytest.mark.parametrize("name", OFFERED)
def test_a_run_folder_leads_to_its_result(name, tmp_path):
    (tmp_path / METHODS[name].folder).mkdir()
    (tmp_path / "run.json").write_text("{}")
    assert METHODS[name].folder == ("adapter" if METHODS[name].base_stays else "model")
    assert ModelReference.parse(str(tmp_path)).path == tmp_path / METHODS[name].folder


def test_a_method_of_another_verb_is_refused_where_its_options_are_not():
    with pytest.raises(MidblockError, match=r"carving needs more than a base and data .midblock carve."):
        TuneSettings(method="carve")
    with pytest.raises(MidblockError, match="method"):
        TuneSettings(method="ful")
