"""A model in parts: each part's weights are those of the loaded model, as long as the `with` lasts."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from midblock.base import MidblockError
from midblock.checkpoints import EffectiveTensors, LoadSettings, load_model, open_checkpoint
from midblock.checkpoints.blockwise import BlockwiseModel

from ..conftest import FAMILIES, make_tuned
from .carving import on_disk, planted

EVERYTHING = ("embedding", "around", "final_norm", "head")


def opened(place, dtype="float32"):
    checkpoint, settings = open_checkpoint(str(place)), LoadSettings(device="cpu", dtype=dtype)
    return BlockwiseModel.of(checkpoint, settings, "m"), load_model(checkpoint, settings)


def all_parts(model):
    return (*EVERYTHING, *range(len(model.anatomy)))


def tensors_of(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def check_same(parts, whole):
    ours, theirs = tensors_of(parts.model), tensors_of(whole)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype, name
        assert torch.equal(ours[name], value), name


HALF = [(family, "bfloat16") for family in ("llama_tied", "gemma3", "gpt_neox")]


@pytest.mark.parametrize(("family", "dtype"), [*((family, "float32") for family in sorted(FAMILIES)), *HALF])
def test_all_parts_together_are_the_loaded_model_to_the_bit(family, dtype, saved, pico):
    parts, whole = opened(saved(pico(family), "base", max_shard_size="40KB"), dtype)
    assert all(value.is_meta for value in parts.model.parameters())
    with parts.loaded(*all_parts(parts)):
        check_same(parts, whole)
        ids = torch.arange(3, 20)[None]
        with torch.no_grad():
            assert torch.equal(parts.model(ids, use_cache=False).logits, whole(ids, use_cache=False).logits)
    assert all(value.is_meta for value in parts.model.parameters())
    parts.close()


def test_a_part_is_there_while_it_is_wanted_and_the_next_is_read_meanwhile(saved, pico):
    parts, whole = opened(saved(pico("llama"), "base"))
    names = [parts.names_of(part) for part in all_parts(parts)]
    assert sorted(name for each in names for name in each) == sorted(dict(whole.named_parameters()))
    there = lambda: {name for name, value in parts.model.named_parameters() if not value.is_meta}  # noqa: E731
    with parts.loaded(0, then=1):
        assert there() == set(parts.names_of(0))
        with parts.loaded("final_norm", 0):
            assert there() == {*parts.names_of(0), *parts.names_of("final_norm")}
        assert there() == set(parts.names_of(0))
    with parts.loaded(1, then=2):
        assert there() == set(parts.names_of(1))
        for name in parts.names_of(1):
            assert torch.equal(parts.model.get_parameter(name), whole.get_parameter(name))
    assert there() == set()
    assert parts.bytes_of(0) == sum(whole.get_parameter(name).nbytes for name in parts.names_of(0))
    parts.close()


def test_a_tied_head_is_the_embedding(saved, pico):
    parts, whole = opened(saved(pico("llama_tied"), "base"))
    assert set(parts.names_of("head")) == set(parts.names_of("embedding"))
    with parts.loaded("head"):
        assert parts.anatomy.head.weight is parts.anatomy.embedding.weight
        assert torch.equal(parts.anatomy.head.weight, whole.get_output_embeddings().weight)
    parts.close()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"target_modules": "all-linear"}),
        ("llama", {"target_modules": ["q_proj", "v_proj"], "use_dora": True}),
        ("gpt2", {"target_modules": "all-linear", "fan_in_fan_out": True}),
        ("llama_tied", {"target_modules": ["lm_head"]}),
        ("mixtral", {"target_modules": [], "target_parameters": ["mlp.experts.down_proj"]}),
    ],
)
def test_an_adapters_change_is_added_in_float64_and_rounded_once(family, options, saved, pico, tmp_path):
    base = saved(pico(family), "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.name_or_path = str(base)
    tuned = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", **options))
    torch.manual_seed(1)
    for value in tuned.parameters():
        if value.requires_grad:
            value.data.add_(0.3 * torch.randn_like(value))
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    parts, whole = opened(tmp_path / "adapter")
    with (
        parts.loaded(*all_parts(parts)),
        EffectiveTensors.of_checkpoint(open_checkpoint(str(tmp_path / "adapter"))) as own,
    ):
        for name, value in whole.named_parameters(remove_duplicate=False):
            found = parts.model.get_parameter(name)
            torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: name + text)
            if name in own.names:
                assert torch.equal(found, own.read(name).float()), name
    parts.close()


def test_a_carriers_values_are_in_it_to_the_bit(saved, pico, tmp_path):
    model = pico("gpt2")
    tuned = make_tuned(model)
    base = saved(model, "base")
    on_disk(tmp_path / "carrier", base, tuned, planted(tuned))
    parts, whole = opened(f"{base}+{tmp_path / 'carrier'}")
    with parts.loaded(*all_parts(parts)):
        check_same(parts, whole)
    parts.close()


def test_what_the_files_lack_is_named(saved, pico):
    folder = saved(pico("llama"), "base")
    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MidblockError, match=r"lacks the tensor model.layers.1.mlp.up_proj.weight \(1 missing"):
        opened(folder)


def test_an_adapter_that_peft_alone_merges_is_refused(saved, pico, tmp_path):
    base = saved(pico("llama"), "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.name_or_path = str(base)
    get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM")).save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "lora_bias": True}))
    with pytest.raises(MidblockError, match=r"merged by PEFT alone.*midblock export ADAPTER --to merged"):
        opened(tmp_path / "adapter")
