"""From files to parameters and back, for conversions that part a tensor, and for one that is not followed."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, HrmTextConfig, conversion_mapping
from transformers.core_model_loading import Chunk, Interleave, WeightConverter

from midblock.base import MidblockError
from midblock.checkpoints import EffectiveTensors, TensorReader, open_checkpoint, projection_on_disk, value_on_disk
from midblock.checkpoints.pieces import box, extent, grouped, put_together
from midblock.checkpoints.stored_names import pieces_of

GATE_UP = WeightConverter(
    source_patterns="mlp.gate_up_proj.weight",
    target_patterns=["mlp.gate_proj.weight", "mlp.up_proj.weight"],
    operations=[Chunk(dim=0)],
)
WOVEN = WeightConverter(
    source_patterns="mlp.down_woven.weight", target_patterns="mlp.down_proj.weight", operations=[Interleave(dim=1)]
)


@pytest.fixture
def stored_by(saved, pico, monkeypatch):
    """Save a llama whose files transformers converts as it is told; give the folder."""

    def save(converter):
        mapping = {**conversion_mapping._build_checkpoint_conversion_mapping(), "llama": [converter]}
        monkeypatch.setattr(conversion_mapping, "_checkpoint_conversion_mapping_cache", mapping)
        return saved(pico("llama"), "base")

    return save


@pytest.fixture
def adapted(tmp_path):
    """Put a LoRA with random factors on one projection of a saved model; give the checkpoint and the tuned weights."""

    def make(folder, role):
        model = AutoModelForCausalLM.from_pretrained(folder)
        tuned = get_peft_model(model, LoraConfig(r=2, target_modules=[role], task_type="CAUSAL_LM"))
        torch.manual_seed(1)
        for value in tuned.parameters():
            if value.requires_grad:
                value.data.normal_()
        tuned.save_pretrained(tmp_path / "adapter")
        return open_checkpoint(str(tmp_path / "adapter")), dict(tuned.merge_and_unload().named_parameters())

    return make


def test_each_parameter_is_its_box_of_a_chunked_tensor(stored_by, pico):
    folder, parameters = stored_by(GATE_UP), dict(pico("llama").named_parameters())
    with EffectiveTensors.of_checkpoint(open_checkpoint(str(folder))) as found:
        fused = [name for name in found.store.names if name.endswith("gate_up_proj.weight")]
        assert len(fused) == found.blocks
        assert set(found.names) == set(parameters)
        assert all(torch.equal(found.read(name), value) for name, value in parameters.items())
        assert all(found.shape(piece) == tuple(parameters[piece.name].shape) for piece in found.stored_pieces)
        for name in found.store.names:
            assert torch.equal(value_on_disk(found, name).value(), found.store.read(name))
            assert projection_on_disk(found, name).name == name


def test_a_change_of_one_part_of_a_chunked_tensor_leaves_the_other(stored_by, adapted):
    checkpoint, tuned = adapted(stored_by(GATE_UP), "up_proj")
    with EffectiveTensors.of_checkpoint(checkpoint) as found:
        name = next(name for name in found.store.names if name.endswith("gate_up_proj.weight"))
        gate, up = (piece.name for piece in found.on_disk[name])
        torch.testing.assert_close(found.read(up).float(), tuned[up], rtol=1e-6, atol=1e-6)
        start, changed = found.store.read(name), value_on_disk(found, name).value()
        assert torch.equal(changed[: len(tuned[gate])], start[: len(tuned[gate])].double())
        assert torch.equal(changed[len(tuned[gate]) :], found.read(up))
        assert not torch.equal(changed, start.double())


def test_a_family_that_chunks_is_read_and_written_as_transformers_does(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "head_dim": 8, "vocab_size": 64}
    model = AutoModelForCausalLM.from_config(HrmTextConfig(num_hidden_layers=2, **sizes))
    model.save_pretrained(tmp_path)
    parameters = dict(model.named_parameters())
    with TensorReader.open(tmp_path) as files:
        pieces = pieces_of({name: files.shape(name) for name in files.names}, model)
        assert sum(bool(piece.inside) for piece in pieces) == 4 * (4 + 2)  # gate, q, k, v; gate, up
        for name, parts in grouped(pieces, "name").items():
            (part,) = parts
            assert torch.equal(box(files.read(part.stored), part.inside), parameters[name])
        for stored, parts in grouped(pieces, "stored").items():
            if parts[0].inside:
                boxes = [(part.inside, parameters[part.name].detach()) for part in parts]
                assert extent([region for region, _ in boxes]) == files.shape(stored)
                assert torch.equal(put_together(files.shape(stored), boxes), files.read(stored))
                assert sum(value.numel() for _, value in boxes) == math.prod(files.shape(stored))


def test_what_is_not_followed_stays_under_its_name_on_disk(stored_by, pico):
    folder, parameters = stored_by(WOVEN), dict(pico("llama").named_parameters())
    with EffectiveTensors.of_checkpoint(open_checkpoint(str(folder))) as found:
        opaque = {piece.stored: piece for piece in found.stored_pieces if piece.opaque}
        assert len(opaque) == found.blocks
        assert all(piece.name == name and piece.opaque == "Interleave" for name, piece in opaque.items())
        followed = set(found.names) - set(opaque)
        assert followed == {name for name in parameters if "down_proj" not in name}
        assert all(torch.equal(found.read(name), parameters[name]) for name in followed)


def test_an_adapter_on_what_is_not_followed_is_refused(stored_by, adapted):
    checkpoint, _ = adapted(stored_by(WOVEN), "down_proj")
    with pytest.raises(MidblockError, match=r"layers\.0\.mlp\.down_proj\.weight.* by Interleave") as refused:
        EffectiveTensors.of_checkpoint(checkpoint)
    assert "\n" not in str(refused.value)
    assert "merge_and_unload" in str(refused.value)


def test_an_adapter_beside_what_is_not_followed_is_read(stored_by, adapted):
    checkpoint, tuned = adapted(stored_by(WOVEN), "up_proj")
    name = "model.layers.1.mlp.up_proj.weight"
    with EffectiveTensors.of_checkpoint(checkpoint) as found:
        torch.testing.assert_close(found.read(name).float(), tuned[name], rtol=1e-6, atol=1e-6)
