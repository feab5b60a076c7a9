import json
import os
import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from midblock.base import MidblockError
from midblock.checkpoints import LoadSettings, load_model, open_checkpoint, quiet_transformers
from midblock.checkpoints.models import pick_device, pick_dtype

IDS = torch.tensor([[5, 9, 120, 33]])
CPU = LoadSettings(device="cpu")


def load(folder, settings=CPU):
    return load_model(open_checkpoint(str(folder)), settings)


def test_a_family_comes_back_from_disk(family, pico, saved):
    model = pico(family)
    loaded = load(saved(model, "model"))
    assert not loaded.training
    assert not any(value.requires_grad for value in loaded.parameters())
    with torch.inference_mode():
        assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_an_adapter_is_merged_as_peft_merges_it(pico, saved, tmp_path):
    base = pico("llama")
    folder = saved(base, "base")
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    base.name_or_path = str(folder)
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    with torch.inference_mode():
        ours = load(tmp_path / "adapter")(input_ids=IDS).logits
        assert torch.equal(ours, theirs.merge_and_unload()(input_ids=IDS).logits)
        assert not torch.equal(ours, pico("llama")(input_ids=IDS).logits)


@pytest.mark.parametrize("size", [8, -50])
def test_a_truncated_file_is_named(pico, saved, size):
    folder = saved(pico("llama"), "model")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(MidblockError, match=r"model\.safetensors is truncated"):
        load(folder)


def test_a_truncated_adapter_is_named(pico, saved, tmp_path):
    base = pico("llama")
    base.name_or_path = str(saved(base, "base"))
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(MidblockError, match=r"adapter_model\.safetensors is truncated"):
        load(tmp_path / "adapter")


def test_a_missing_tensor_is_named(pico, saved):
    folder = saved(pico("llama"), "model")
    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"], state["model.norm.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MidblockError, match=r"model lacks the tensor model.layers.1.mlp.up_proj.weight \(2 missing"):
        load(folder)


def test_a_tensor_of_another_shape_is_named(pico, saved):
    folder = saved(pico("llama"), "model")
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"] = torch.ones(7)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MidblockError, match=r"^model: model\.norm\.weight is \[7\], its config wants \[32\]"):
        load(folder)


def test_what_is_no_causal_language_model(saved, pico):
    folder = saved(pico("llama"), "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "clip", "architectures": ["CLIPModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(MidblockError, match="no causal language model for CLIPConfig"):
        load(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_dtype_asked_for(pico, saved, dtype):
    model = load(saved(pico("llama"), "model"), LoadSettings(device="cpu", dtype=dtype))
    assert {value.dtype for value in model.parameters()} == {getattr(torch, dtype)}


def test_auto_dtype_is_float32_on_the_cpu():
    assert pick_dtype("auto", torch.device("cpu")) is torch.float32
    assert pick_dtype("auto", torch.device("cuda")) == "auto"


def test_eager_attention_can_be_asked_for(pico, saved):
    model = load(saved(pico("llama"), "model"), LoadSettings(device="cpu", attn_implementation="eager"))
    assert model.config._attn_implementation == "eager"
    with pytest.raises(MidblockError, match="cannot load model"):
        load(saved(pico("llama"), "model"), LoadSettings(device="cpu", attn_implementation="egaer"))


@pytest.mark.parametrize("device", ["cuda:77", "gpu", "xpu", "cpuu"])
def test_a_device_that_is_not_here(device):
    with pytest.raises(MidblockError, match=f"device '{device}' is not available .*auto") as caught:
        pick_device(device)
    assert "\n" not in str(caught.value)


def test_auto_finds_a_device():
    assert torch.ones(2, device=pick_device("auto")).sum() == 2


def test_transformers_is_quiet_inside_and_itself_again_outside():
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with suppress(ValueError), quiet_transformers():
        inside = logging.get_verbosity(), logging.is_progress_bar_enabled()
        raise ValueError("an error inside")
    assert inside == (logging.ERROR, False)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_an_adapter_of_another_shape_is_named(pico, saved, tmp_path):
    base = pico("llama")
    base.name_or_path = str(saved(base, "base"))
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: torch.zeros(3, 5) for name in load_file(file)}, file)
    with pytest.raises(MidblockError, match=r"q_proj.* is \[3, 5\]: they cannot be multiplied") as caught:
        load(tmp_path / "adapter")
    assert "\n" not in str(caught.value)


def test_the_meta_device_is_refused():
    with pytest.raises(MidblockError, match="'meta' holds no numbers"):
        pick_device("meta")


LISTENS = """
import sys
def heard(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        print("called", event, arguments[:2])
sys.addaudithook(heard)
from midblock.checkpoints import LoadSettings, load_model, open_checkpoint
checkpoint = open_checkpoint(sys.argv[1])
checkpoint.tokenizer()
load_model(checkpoint, LoadSettings(device="cpu"))
"""


def test_a_local_folder_is_loaded_without_the_network(pico, saved, tmp_path):
    folder = saved(pico("mistral"), "local")
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hub")}
    command = [sys.executable, "-W", "ignore", "-c", LISTENS, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == ""
