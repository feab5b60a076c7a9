"""From files to parameters and back, for conversions that part a tensor, and for one that is not followed."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, HrmTextConfig, conversion_mapping
from transformers.core_model_loading import Chunk, Interleave, PermuteForRope, Split, Transpose, WeightConverter

from midblock.base import MidblockError
from midblock.checkpoints import EffectiveTensors, TensorReader, open_checkpoint, projection_on_disk, value_on_disk
from midblock.checkpoints.pieces import box, extent, grouped, put_together
from midblock.checkpoints.stored_names import pieces_of

GATE_UP = WeightConverter(
    source_patterns="mlp.gate_up_proj.weight",
    target_patterns=["mlp.gate_proj.weight", "mlp.up_proj.weight"],
    operations=[Chunk(dim=0)],
)


def converter(source, targets, *operations):
    return WeightConverter(source_patterns=source, target_patterns=targets, operations=list(operations))


BOTH = ["mlp.gate_proj.weight", "mlp.up_proj.weight"]
QKV = [f"self_attn.{role}_proj.weight" for role in "qkv"]
FOLLOWED = {
    "woven columns": converter("mlp.down_woven.weight", "mlp.down_proj.weight", Interleave(dim=1)),
    "woven rows": converter("mlp.down_woven.weight", "mlp.down_proj.weight", Interleave(dim=0)),
    "woven halves": converter("mlp.w13.weight", BOTH, Interleave(dim=0), Chunk(dim=0)),
    "transposed": converter("mlp.down_turned.weight", "mlp.down_proj.weight", Transpose(dim0=0, dim1=1)),
    "parted by size": converter("self_attn.qkv.weight", QKV, Split(dim=0)),
}
IF_NEED_BE = converter("mlp.down_proj.weight", "mlp.down_proj.weight", Transpose(dim0=0, dim1=1, check_dims=True))
PERMUTED = converter("self_attn.q_rope.weight", "self_attn.q_proj.weight", PermuteForRope())


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


@pytest.mark.parametrize("kind", FOLLOWED)
def test_each_operation_is_followed_there_and_back(kind, stored_by, pico):
    folder, parameters = stored_by(FOLLOWED[kind]), dict(pico("llama").named_parameters())
    with EffectiveTensors.of_checkpoint(open_checkpoint(str(folder))) as found:
        assert set(found.store.names) != set(parameters)
        assert set(found.names) == set(parameters)
        for name, value in parameters.items():
            assert torch.equal(found.read(name), value), name
        for piece in found.stored_pieces:
            assert piece.opaque is None
            assert piece.region == ()
            assert found.shape(piece) == tuple(parameters[piece.name].shape)
        for name in found.store.names:
            assert torch.equal(value_on_disk(found, name).value(), found.store.read(name)), name


def test_a_transposition_only_where_the_model_has_it_otherwise(stored_by, pico):
    folder, parameters = stored_by(IF_NEED_BE), dict(pico("llama").named_parameters())
    file, name = folder / "model.safetensors", "model.layers.1.mlp.down_proj.weight"
    content = load_file(file)
    save_file({**content, name: content[name].T.contiguous()}, file, metadata={"format": "pt"})
    loaded = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    with EffectiveTensors.of_checkpoint(open_checkpoint(str(folder))) as found:
        turned = [piece.name for piece in found.stored_pieces if piece.turn is not None]
        assert turned == [name]
        assert all(torch.equal(found.read(each), value) for each, value in loaded.items())
        assert torch.equal(found.read(name), parameters[name])
        assert torch.equal(value_on_disk(found, name).value(), parameters[name].T)


@pytest.mark.parametrize("kind", ["woven rows", "woven halves", "transposed"])
def test_an_adapter_changes_what_lies_in_another_order(kind, stored_by, adapted):
    role = "up_proj" if kind == "woven halves" else "down_proj"
    checkpoint, tuned = adapted(stored_by(FOLLOWED[kind]), role)
    with EffectiveTensors.of_checkpoint(checkpoint) as found:
        name = f"model.layers.1.mlp.{role}.weight"
        torch.testing.assert_close(found.read(name).float(), tuned[name], rtol=1e-6, atol=1e-6)
        (piece,) = found.by_name[name]
        written = value_on_disk(found, piece.stored).value()
        assert written.shape == found.store.shape(piece.stored)
        torch.testing.assert_close(
            piece.turn.apply(written)[tuple(slice(*side) for side in piece.inside)], found.read(name)
        )


def test_what_no_model_loads_is_told_apart(saved, pico):
    folder = saved(pico("qwen3_moe"), "base")
    file = folder / "model.safetensors"
    extra = ("model.layers.3.mlp.experts.0.up_proj.weight", "mtp.layers.0.input_layernorm.weight", "v_head.bias")
    save_file({**load_file(file), **{name: torch.ones(4) for name in extra}}, file, metadata={"format": "pt"})
    with EffectiveTensors.of_checkpoint(open_checkpoint(str(folder))) as found:
        unread = [piece for piece in found.stored_pieces if piece.unread]
        assert {piece.stored for piece in unread} == {piece.name for piece in unread} == set(extra)


def test_what_is_not_followed_stays_under_its_name_on_disk(stored_by, pico):
    folder, parameters = stored_by(PERMUTED), dict(pico("llama").named_parameters())
    with EffectiveTensors.of_checkpoint(open_checkpoint(str(folder))) as found:
        opaque = {piece.stored: piece for piece in found.stored_pieces if piece.opaque}
        assert len(opaque) == found.blocks
        assert all(piece.name == name and piece.opaque == "PermuteForRope" for name, piece in opaque.items())
        followed = set(found.names) - set(opaque)
        assert followed == {name for name in parameters if "q_proj" not in name}
        assert all(torch.equal(found.read(name), parameters[name]) for name in followed)


def test_an_adapter_on_what_is_not_followed_is_refused(stored_by, adapted):
    checkpoint, _ = adapted(stored_by(PERMUTED), "q_proj")
    with pytest.raises(MidblockError, match=r"layers\.0\.self_attn\.q_proj\.weight.* by PermuteForRope") as refused:
        EffectiveTensors.of_checkpoint(checkpoint)
    assert "\n" not in str(refused.value)
    assert "merge_and_unload" in str(refused.value)


def test_an_adapter_beside_what_is_not_followed_is_read(stored_by, adapted):
    checkpoint, tuned = adapted(stored_by(PERMUTED), "up_proj")
    name = "model.layers.1.mlp.up_proj.weight"
    with EffectiveTensors.of_checkpoint(checkpoint) as found:
        torch.testing.assert_close(found.read(name).float(), tuned[name], rtol=1e-6, atol=1e-6)
