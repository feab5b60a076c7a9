"""Codes and scales against the weights that they were made of, and against transformers' own dequantisation."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, GptOssConfig, LlamaConfig, Mxfp4Config

from midblock.base import MidblockError
from midblock.checkpoints import (
    EffectiveTensors,
    LoadSettings,
    TensorReader,
    check_readable,
    load_model,
    open_checkpoint,
)
from midblock.checkpoints.quantised import DequantisedTensors, dequantised

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
SCALE, PLAIN = "weight_scale_inv", "weight_scale"


def blocks_of(weight, rows, columns):
    """The largest magnitude of each block, (blocks down, blocks across)."""
    down = [weight[at : at + rows] for at in range(0, len(weight), rows)]
    across = [[part[:, at : at + columns] for at in range(0, part.shape[1], columns)] for part in down]
    return torch.stack([torch.stack([block.abs().max() for block in row]) for row in across])


def grown(scale, rows, columns, shape):
    """Each number of a scale at every entry that shares it."""
    return torch.kron(scale, torch.ones(rows, columns))[: shape[0], : shape[1]]


def quantised(weight, rows, columns, kind=E4M3):
    """Codes, scale and what they mean, in plain torch."""
    scale = blocks_of(weight, rows, columns) / torch.finfo(kind).max
    full = grown(scale, rows, columns, weight.shape)
    codes = (weight / full).to(kind)
    return codes, scale, codes.float() * full


def write(folder, **tensors):
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    return TensorReader.open(folder)


@pytest.mark.parametrize("kind", [E4M3, E5M2], ids=str)
@pytest.mark.parametrize("name", [SCALE, PLAIN, "scale"])
@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [((48, 32), 48, 32), ((48, 32), 1, 32), ((256, 384), 128, 128), ((200, 300), 128, 128), ((48, 32), 16, 16)],
    ids=["tensor", "row", "blocks", "blocks with a rest", "small blocks"],
)
def test_float8_is_codes_times_scale(kind, name, shape, rows, columns, tmp_path):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    codes, scale, meant = quantised(weight, rows, columns, kind)
    with dequantised(write(tmp_path, **{"a.weight": codes, f"a.{name}": scale, "norm.weight": torch.ones(3)})) as found:
        assert isinstance(found, DequantisedTensors)
        assert set(found.names) == {"a.weight", "norm.weight"}
        assert torch.equal(found.read("a.weight"), meant)
        assert found.shape("a.weight") == shape
        assert found.dtype("a.weight") == torch.float32


@pytest.mark.parametrize("form", [(), (1,), (1, 1), (48,)], ids=str)
def test_a_scale_of_few_numbers_may_have_any_form(form, tmp_path):
    weight = torch.randn(48, 32)
    scale = torch.rand(form) + 0.5
    codes = weight.to(E4M3)
    with dequantised(write(tmp_path, **{"a.weight": codes, "a.weight_scale": scale})) as found:
        factor = scale[:, None] if form == (48,) else scale.reshape(())
        assert torch.equal(found.read("a.weight"), codes.float() * factor)


def test_experts_in_one_tensor(tmp_path):
    weight, scale = torch.randn(3, 16, 8).to(E4M3), torch.rand(3, 1, 8) + 0.5
    with dequantised(write(tmp_path, **{"experts.up": weight, "experts.up_scale": scale})) as found:
        assert torch.equal(found.read("experts.up"), weight.float() * scale)


def test_bytes_are_exponents(tmp_path):
    weight, exponents = torch.randn(4, 64).to(E4M3), torch.randint(120, 135, (4, 2), dtype=torch.uint8)
    with dequantised(write(tmp_path, **{"a.weight": weight, "a.weight_scale_inv": exponents})) as found:
        factor = (2.0 ** (exponents.float() - 127)).repeat_interleave(32, 1)
        assert torch.equal(found.read("a.weight"), weight.float() * factor)


def test_int8_with_a_scale_for_each_row(tmp_path):
    codes, scale = torch.randint(-127, 128, (8, 6), dtype=torch.int8), torch.rand(8, 1) + 0.5
    with dequantised(write(tmp_path, **{"a.weight": codes, "a.weight_scale": scale})) as found:
        assert torch.equal(found.read("a.weight"), codes.float() * scale)
    with dequantised(write(tmp_path, **{"a.weight": codes, "a.SCB": scale[:, 0]})) as found:
        torch.testing.assert_close(found.read("a.weight"), codes.float() * scale / 127)


@pytest.mark.parametrize(
    "beside",
    [
        {},
        {"a.weight_scale": torch.ones(3, 5)},
        {"a.weight_scale": torch.ones(1), "a.weight_scale_inv": torch.ones(1)},
        {"a.weight_scale": torch.ones(1), "a.weight_zero_point": torch.ones(1)},
    ],
    ids=["no scale", "a scale of another shape", "two scales", "a zero point"],
)
@pytest.mark.parametrize("kind", [E4M3, torch.int8], ids=str)
def test_what_is_not_certain_is_left_as_it_is(kind, beside, tmp_path):
    reader = write(tmp_path, **{"a.weight": torch.ones(8, 6).to(kind), **beside})
    assert dequantised(reader) is reader


def test_a_config_says_how_wide_blocks_are(tmp_path):
    asked = LlamaConfig(quantization_config={"weight_block_size": [100, 64]})
    weight = torch.randn(192, 64)
    codes, scale, meant = quantised(weight, 100, 64)
    reader = write(tmp_path, **{"a.weight": codes, "a.weight_scale_inv": scale})
    assert torch.equal(dequantised(reader, asked).read("a.weight"), meant)
    assert not torch.equal(dequantised(reader).read("a.weight"), meant)


# whole models


@pytest.fixture
def fp8(saved, pico):
    """A llama in float8, as transformers keeps one, its scales in another shard; and the weights that they mean."""

    def make(*, config=True, side=16):
        folder = saved(pico("llama").to(torch.bfloat16), "fp8")
        content = load_file(folder / "model.safetensors")
        codes, scales, meant = {}, {}, {}
        for name, value in content.items():
            meant[name] = value.float()
            codes[name] = value
            if value.ndim == 2 and ".layers." in name:
                codes[name], scales[f"{name}_scale_inv"], meant[name] = quantised(value.float(), side, side)
        (folder / "model.safetensors").unlink()
        for file, part in (("a.safetensors", codes), ("b.safetensors", scales)):
            save_file({name: value.contiguous() for name, value in part.items()}, folder / file, {"format": "pt"})
        weight_map = {**dict.fromkeys(codes, "a.safetensors"), **dict.fromkeys(scales, "b.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        if config:
            file = folder / "config.json"
            asked = {"quant_method": "fp8", "weight_block_size": [side, side], "activation_scheme": "dynamic"}
            file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": asked}))
        return folder, meant

    return make


@pytest.mark.parametrize("config", [True, False], ids=["said by the config", "told by the types"])
def test_a_float8_model_is_read_as_its_weights(config, fp8):
    folder, meant = fp8(config=config)
    with check_readable(EffectiveTensors.of_checkpoint(open_checkpoint(str(folder)))) as found:
        assert set(found.names) == set(meant)
        assert len(found.coded) == 21
        assert not found.unread
        for name, value in meant.items():
            assert torch.equal(found.read(name).float(), value), name
            assert found.store.dtype(name) == torch.bfloat16


def test_transformers_dequantises_alike(fp8):
    folder, _ = fp8()
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=FineGrainedFP8Config(dequantize=True))
    with EffectiveTensors.of_checkpoint(open_checkpoint(str(folder))) as found:
        for name, value in model.named_parameters():
            assert torch.equal(found.read(name).to(value.dtype), value), name


@pytest.mark.parametrize("config", [True, False], ids=["said by the config", "told by the types"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_float8_model_runs_as_its_weights(config, dtype, fp8, pico, saved):
    folder, meant = fp8(config=config)
    kind = getattr(torch, dtype)
    model = load_model(open_checkpoint(str(folder)), LoadSettings(device="cpu", dtype=dtype))
    plain = pico("llama")
    plain.load_state_dict(meant)
    plain = AutoModelForCausalLM.from_pretrained(saved(plain, "plain"), dtype=kind)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert {value.dtype for value in model.parameters()} == {kind}
        assert torch.equal(model(ids).logits, plain(ids).logits)
    assert model.config.to_dict().get("quantization_config") is None


def test_mxfp4_experts_are_read_as_transformers_does(tmp_path, tokenizer):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = GptOssConfig(num_hidden_layers=2, num_local_experts=2, vocab_size=64, head_dim=8, pad_token_id=0, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    file, meant = tmp_path / "model.safetensors", {}
    content = load_file(file)
    stream = torch.Generator().manual_seed(0)
    for name in [name for name in content if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, columns, rows = content.pop(name).shape
        blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8, generator=stream)
        scales = torch.randint(118, 124, blocks.shape[:3], dtype=torch.uint8, generator=stream)
        content |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        meant[name] = convert_moe_packed_tensors(blocks, scales)
    save_file(content, file, metadata={"format": "pt"})
    with check_readable(EffectiveTensors.of_checkpoint(open_checkpoint(str(tmp_path)))) as found:
        assert {codes.kind for codes in found.coded.values()} == {"mxfp4"}
        assert all(torch.equal(found.read(name), value) for name, value in meant.items())
        assert all(found.shape(piece) == tuple(meant[piece.name].shape) for piece in found.stored_pieces
                   if piece.name in meant)  # fmt: skip
    ours = dict(load_model(open_checkpoint(str(tmp_path)), LoadSettings(device="cpu")).named_parameters())
    assert all(torch.equal(ours[name], value.float()) for name, value in meant.items())
    asked = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head", "model.embed_tokens"]}
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": asked}))
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.bfloat16, quantization_config=Mxfp4Config(dequantize=True)
    )
    loaded = dict(model.named_parameters())
    assert all(torch.equal(loaded[name], value) for name, value in meant.items())


@pytest.mark.parametrize(
    ("stored", "kind"),
    [
        ({"weight": torch.zeros(48, 32, dtype=torch.int8)}, "int8"),
        ({"weight": torch.zeros(768, 1, dtype=torch.uint8), "weight.absmax": torch.ones(24)}, "uint8"),
        ({"weight": torch.zeros(48, 32).to(E4M3)}, "float8_e4m3fn"),
        ({"qweight": torch.zeros(4, 48, dtype=torch.int32), "scales": torch.ones(1, 48)}, "int32"),
        ({"weight_packed": torch.zeros(48, 4, dtype=torch.int32), "weight_scale": torch.ones(48, 1)}, "int32"),
    ],
    ids=["int8", "bitsandbytes 4 bit", "float8 alone", "gptq and awq", "compressed-tensors"],
)
def test_codes_of_an_unknown_kind_are_named(stored, kind, saved, pico):
    folder = saved(pico("llama"), "codes")
    file, path = folder / "model.safetensors", "model.layers.1.mlp.up_proj"
    content = load_file(file)
    content.pop(f"{path}.weight")
    save_file({**content, **{f"{path}.{name}": value for name, value in stored.items()}}, file, {"format": "pt"})
    with EffectiveTensors.of_checkpoint(open_checkpoint(str(folder))) as found:
        with pytest.raises(MidblockError, match=rf"codes stores {path}\.\w+.* as codes \({kind}\)") as refused:
            check_readable(found)
        assert "\n" not in str(refused.value)
    with pytest.raises(MidblockError, match=rf"codes stores {path}"):
        load_model(open_checkpoint(str(folder)), LoadSettings(device="cpu"))


def test_a_model_of_plain_weights_is_readable(saved, pico):
    with EffectiveTensors.of_checkpoint(open_checkpoint(str(saved(pico("llama"), "plain")))) as found:
        assert check_readable(found) is found
        assert not found.coded
        assert isinstance(found.store, TensorReader)
