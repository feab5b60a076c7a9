"""Carriers on every family: the loaded model, its tensors on disk and an applied carrier are the same to the bit."""

from dataclasses import replace

import pytest
import torch

from midblock import MidblockError, apply_carrier
from midblock.checkpoints import Anatomy, Carrier, EffectiveTensors, LoadSettings, combine, load_model, open_checkpoint
from midblock.checkpoints.decoder_names import name_in

from ..conftest import make_tuned, make_wrapped
from .carving import config_of, in_memory, on_disk, planted, same, values_of, where


def test_loaded_read_and_applied_are_the_masked_weights(family, saved, pico, tmp_path):
    model = pico(family)
    tuned = make_tuned(model)
    before, after = values_of(model), values_of(tuned)
    base = saved(model, "base", max_shard_size="40KB")
    entries = planted(tuned, moves=lambda name: ".1." in name or "embed" in name or "wte" in name)
    carrier = on_disk(tmp_path / "carrier", base, tuned, entries)
    masks = where(model, entries)
    expected = {name: torch.where(masks[name], after[name], before[name]) for name in before}
    assert not same(model, expected)

    checkpoint = open_checkpoint(f"{base}+{tmp_path / 'carrier'}")
    assert same(load_model(checkpoint, LoadSettings()), expected)
    with EffectiveTensors.of_checkpoint(checkpoint) as found, EffectiveTensors.of_model(model, "base") as ours:
        assert set(found.names) == set(expected)
        for name, value in expected.items():
            assert torch.equal(found.read(name), value), name
        for piece in found.stored_pieces:
            untouched = torch.equal(found.source(piece).value(), ours.like(found, piece).value())
            assert (found.origin(piece) is not None) == untouched, piece
    with apply_carrier(model, carrier) as applied:
        assert same(model, expected)
        assert (applied.parameters, applied.entries) == (len(entries), carrier.count)
    assert same(model, before)
    with apply_carrier(tuned, carrier, remove=True, base=model):
        assert same(tuned, {name: torch.where(masks[name], before[name], after[name]) for name in before})
    assert same(tuned, after)


@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "phi3", "falcon", "mixtral", "bloom"])
def test_all_kept_is_the_tuned_model_and_none_the_base(family, saved, pico, tmp_path):
    model = pico(family)
    tuned = make_tuned(model)
    base = saved(model, "base")
    on_disk(tmp_path / "all", base, tuned, planted(tuned, share=2.0))
    assert same(load_model(open_checkpoint(str(tmp_path / "all")), LoadSettings()), values_of(tuned))
    before = values_of(model)
    with apply_carrier(model, in_memory(tuned, {})) as applied:
        assert same(model, before)
        assert applied.entries == 0


@pytest.fixture
def half(pico):
    """A model, one tuned from it, and a carrier of half of the rows and columns."""
    model = pico("llama")
    tuned = make_tuned(model)
    return model, tuned, in_memory(tuned, planted(tuned))


def test_a_scale_moves_between_base_and_carrier(half):
    model, tuned, carrier = half
    before, after = values_of(model), values_of(tuned)
    masks = where(model, dict(carrier.held))
    for scale in (0.0, 0.25, -1.0, 1.0):
        with apply_carrier(model, carrier, scale=scale):
            for name, value in model.named_parameters():
                exact = before[name].double() + scale * (after[name].double() - before[name].double())
                assert torch.equal(value, torch.where(masks[name], exact.float(), before[name]))
        assert same(model, before)


def test_an_error_inside_leaves_the_model_as_it_was(half):
    model, _, carrier = half
    before = values_of(model)
    with pytest.raises(RuntimeError), apply_carrier(model, carrier), apply_carrier(model, carrier, scale=3.0):
        raise RuntimeError
    assert same(model, before)


def test_a_model_that_lacks_a_parameter_is_refused_before_anything_is_changed(half):
    model, _, carrier = half
    before = values_of(model)
    norm = carrier.entries("model.norm.weight")
    other_shape = replace(carrier.config, shapes={**carrier.config.shapes, "model.norm.weight": (31,)})
    more = replace(carrier.config, shapes={**carrier.config.shapes, "model.more": (32,)})
    for wrong, said in (
        (Carrier(other_shape, carrier.held), r"in the shape \[31\], the model has \[32\]"),
        (Carrier(more, {**carrier.held, "model.more": norm}), "changes model.more, which the model has not"),
    ):
        with pytest.raises(MidblockError, match=said), apply_carrier(model, wrong):
            raise AssertionError
    with (
        pytest.raises(MidblockError, match="removed with the base"),
        apply_carrier(model, carrier, remove=True),
    ):
        raise AssertionError
    with pytest.raises(MidblockError, match="no finite number"), apply_carrier(model, carrier, scale=float("nan")):
        raise AssertionError
    assert same(model, before)


def test_combined_carriers_are_the_sum_of_their_changes(half):
    model, tuned, carrier = half
    other_tuned = make_tuned(model, seed=5)
    other = in_memory(other_tuned, planted(other_tuned, seed=3))
    before = values_of(model)
    made = in_memory(tuned, combine([carrier, other], model, [1.0, -2.0]))
    masks = [where(model, dict(each.held)) for each in (carrier, other)]
    with apply_carrier(model, made):
        for name, value in model.named_parameters():
            start = before[name].double()
            first, second = (each.state_dict()[name].double() - start for each in (tuned, other_tuned))
            exact = start + masks[0][name] * first - 2 * masks[1][name] * second
            assert torch.equal(value, exact.float()), name
    alone = combine([carrier], model)
    assert all(torch.equal(alone[name].values, carrier.entries(name).values) for name in carrier.names)
    elsewhere = Carrier(replace(other.config, base="another", base_hash="1" * 64), other.held)
    with pytest.raises(MidblockError, match="have different bases: base, another"):
        combine([carrier, elsewhere], model)
    with pytest.raises(MidblockError, match="2 carriers and 1 scales"):
        combine([carrier, other], model, [1.0])


def test_carriers_within_one_another_add(half, pico, saved, tmp_path):
    model, tuned, carrier = half
    other_tuned = make_tuned(model, seed=5)
    other = in_memory(other_tuned, planted(other_tuned, seed=3))
    before, masks = values_of(model), [where(model, dict(each.held)) for each in (carrier, other)]
    changes = [
        {n: v.double() - before[n].double() for n, v in values_of(each).items()} for each in (tuned, other_tuned)
    ]
    summed = {n: before[n].double() + sum(m[n] * c[n] for m, c in zip(masks, changes, strict=True)) for n in before}
    expected = {name: value.float() for name, value in summed.items()}
    with apply_carrier(model, carrier), apply_carrier(model, other):
        assert same(model, expected)
    with apply_carrier(model, other), apply_carrier(model, carrier):
        assert same(model, expected)
    assert same(model, before)

    base = saved(model, "base")
    for name, made, each in (("one", tuned, carrier), ("two", other_tuned, other)):
        on_disk(tmp_path / name, base, made, dict(each.held))
    checkpoint = open_checkpoint(f"{base}+{tmp_path / 'one'}+{tmp_path / 'two'}")
    assert [each.folder.name for each in checkpoint.carriers] == ["one", "two"]
    assert same(load_model(checkpoint, LoadSettings()), expected)
    with EffectiveTensors.of_checkpoint(checkpoint) as found:
        assert all(torch.equal(found.read(name).float(), value) for name, value in expected.items())


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "gemma3"])
def test_it_is_found_inside_a_multimodal_model_and_alone(kind):
    whole, alone = make_wrapped(kind)
    tuned = make_tuned(whole)
    paths = Anatomy.of(whole).names
    inside = planted(tuned, moves=lambda name: name.startswith((paths["blocks"], paths["final_norm"])))
    carrier = Carrier(replace(config_of(tuned), parts=paths), inside)
    before = [values_of(whole), values_of(alone)]
    with apply_carrier(whole, carrier), apply_carrier(alone, carrier) as applied:
        assert applied.entries == carrier.count
        changed = 0
        for name, value in alone.named_parameters():
            other = whole.get_parameter(name_in(paths, Anatomy.of(alone).names, name))
            assert torch.equal(value, other)
            changed += int((value != before[1][name]).sum())
        assert changed > 0.9 * carrier.count
    assert same(whole, before[0])
    assert same(alone, before[1])
