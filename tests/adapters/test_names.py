"""Adapters whose tensors are called otherwise than PEFT would: put right for states and weights alike, or refused."""

import re

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Gemma3Config

import midblock
from midblock.base import MidblockError
from midblock.checkpoints import load_pair
from midblock.checkpoints.adapter_names import AdapterNames

from .conftest import IDS

PREFIX = "base_model.model."
RENAMED = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled within": lambda name: name.replace(PREFIX, f"{PREFIX}_orig_mod."),
    "data parallel": lambda name: f"module.{name}",
    "sharded, checkpointed": lambda name: name.replace(".self_attn.", "._fsdp_wrapped_module.self_attn.").replace(
        ".q_proj.", "._checkpoint_wrapped_module.q_proj."
    ),
    "no prefix": lambda name: name.removeprefix(PREFIX),
    "another prefix": lambda name: name.replace("base_model.model.", "base_model."),
    "from AutoModel": lambda name: name.replace(f"{PREFIX}model.", PREFIX),
    "multimodal": lambda name: name.replace("model.layers", "model.language_model.layers"),
    "multimodal, outside": lambda name: name.replace(f"{PREFIX}model.", f"{PREFIX}language_model.model."),
    "adapter's name left in": lambda name: name.replace(".weight", ".default.weight"),
    "half of the layers": lambda name: f"_orig_mod.{name}" if ".layers.1." in name or ".v_proj" in name else name,
}


def checked(adapted):
    """States and weights are those of PEFT's model; what the pair's notes say."""
    pair = load_pair(str(adapted.base), str(adapted.adapter), device="cpu")
    model = pair.tuned[0].model
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS).logits, adapted.logits, rtol=1e-4, atol=1e-4)
    with pair.tuned[0].tensors() as tensors:
        for name, value in model.named_parameters():
            torch.testing.assert_close(tensors.read(name).float(), value, rtol=1e-5, atol=1e-6)
    return pair.notes()


def refused(adapted, message):
    """Both loading the model and reading the weights end with the same line."""
    for work in (lambda variant: variant.model, lambda variant: variant.tensors()):
        with pytest.raises(MidblockError, match=message) as caught:
            work(load_pair(str(adapted.base), str(adapted.adapter), device="cpu").tuned[0])
        assert "\n" not in str(caught.value)


def test_names_as_peft_has_them_need_no_note(adapt):
    assert [note for note in checked(adapt()) if "tensors otherwise" in note] == []


@pytest.mark.parametrize("how", RENAMED)
def test_other_names_are_put_right_and_told(adapt, how):
    adapted = adapt()
    count = sum(RENAMED[how](name) != name for name in load_file(adapted.file))
    adapted.rename(RENAMED[how])
    (note,) = [note for note in checked(adapted) if "otherwise than PEFT would" in note]
    assert re.search(rf"calls {count} of its 12 tensors", note)


def test_a_multimodal_base_takes_an_adapter_of_its_text_model(adapt):
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision = {**tower, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config={**sizes, **heads}, vision_config=vision, mm_tokens_per_image=4)
    targets = r".*language_model.*\.(q_proj|v_proj)"
    torch.manual_seed(0)
    adapted = adapt(model=AutoModelForCausalLM.from_config(config), target_modules=targets)
    assert checked(adapted) == []
    adapted.rename(lambda name: name.replace("model.language_model.", "model."))
    assert any("otherwise than PEFT would" in note for note in checked(adapted))
    adapted.configure(target_modules=["q_proj", "v_proj"])
    assert any("names model.vision_tower" in note and "holds nothing" in note for note in checked(adapted))


PATTERNS = {
    "alphas": {"alpha_pattern": {"model.layers.1.self_attn.q_proj": 64}},
    "alphas by expression": {"alpha_pattern": {r"^model\.layers\.[01]\.self_attn\.v_proj": 48}},
    "ranks": {"rank_pattern": {"model.layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"v_proj": 24}},
    "targets by name": {"target_modules": ["model.layers.1.self_attn.q_proj", "v_proj"]},
    "targets by expression": {"target_modules": r"model\.layers\.\d\.self_attn\.(q|v)_proj"},
    "stacked": {"target_parameters": ["mlp.experts.down_proj"], "rank_pattern": {r"model\.layers\.1\..*down_proj": 2}},
}


@pytest.mark.parametrize("how", ["multimodal", "from AutoModel"])
@pytest.mark.parametrize("said", PATTERNS)
def test_what_a_config_says_of_single_modules_goes_with_their_names(adapt, said, how):
    """The config speaks of the model that was tuned, whatever its base here calls the same modules."""
    adapted = adapt("mixtral" if said == "stacked" else "llama", **PATTERNS[said])

    def renamed(value):
        if isinstance(value, list):
            return [renamed(each) for each in value]
        if isinstance(value, dict):
            return {renamed(key): each for key, each in value.items()}
        for dot in (".", r"\."):
            value = value.replace(
                f"model{dot}layers", RENAMED[how](f"{PREFIX}model.layers")[len(PREFIX) :].replace(".", dot)
            )
        return value

    adapted.rename(RENAMED[how])
    adapted.configure(**{key: renamed(value) for key, value in PATTERNS[said].items()})
    assert any("otherwise than PEFT would" in note for note in checked(adapted))


@pytest.mark.parametrize("family", ["gpt2", "llama_tied"])
def test_whole_tensors_biases_and_embeddings_are_put_right_too(adapt, family):
    targets = ["c_attn", "wte"] if family == "gpt2" else ["q_proj", "embed_tokens"]
    options = {"target_modules": targets, "fan_in_fan_out": family == "gpt2", "bias": "lora_only"}
    adapted = adapt(family, modules_to_save=["ln_f" if family == "gpt2" else "norm"], **options)
    adapted.rename(lambda name: f"module._orig_mod.{name.removeprefix(PREFIX).removeprefix('transformer.')}")
    assert any("otherwise than PEFT would" in note for note in checked(adapted))


def test_dora_and_experts_are_put_right_too(adapt):
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    adapted = adapt("mixtral", target_parameters=experts)
    adapted.rename(lambda name: f"_orig_mod.{name}")
    assert any("otherwise than PEFT would" in note for note in checked(adapted))
    adapted = adapt("llama", use_dora=True)
    adapted.rename(lambda name: f"_orig_mod.{name}")
    assert any("otherwise than PEFT would" in note for note in checked(adapted))


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("model.layers.2.", "model.layers.7."),
        lambda name: name.replace("model.layers", "model.vision_tower.layers"),
        lambda name: name.replace("self_attn.q_proj", "attention.wq"),
        lambda name: name.replace(PREFIX, f"{PREFIX}other."),
    ],
    ids=["a layer too many", "a vision tower", "another family", "an unknown word"],
)
def test_what_the_base_has_not_is_named(adapt, rename):
    adapted = adapt()
    adapted.rename(rename)
    refused(adapted, r"the adapter .* changes .*, which its base has not .*--base")


def test_two_names_of_one_tensor_are_refused(adapt):
    adapted = adapt()
    adapted.rewrite(lambda tensors: tensors | {f"module.{name}": value + 1 for name, value in tensors.items()})
    refused(adapted, r"holds a tensor twice: .*q_proj.* and module\..* are both base_model\.model\.model\.layers")


@pytest.mark.parametrize("how", RENAMED)
def test_exports_for_servers_and_trainers_put_right_or_refuse(adapt, tmp_path, how):
    adapted = adapt(rank_pattern={"q_proj": 2})
    adapted.rename(RENAMED[how])
    made = midblock.export(adapted.adapter, tmp_path / "merged", to="merged")
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(made)(input_ids=IDS).logits
    torch.testing.assert_close(logits, adapted.logits, rtol=1e-4, atol=1e-4)
    midblock.export(adapted.adapter, tmp_path / "config", to="lora-config")
    if how in ("another prefix", "from AutoModel", "multimodal", "multimodal, outside"):  # no base to tell by
        midblock.export(adapted.adapter, tmp_path / "equal", to="equal-rank")
        return
    with pytest.raises(MidblockError, match="is not called as PEFT would call it"):
        midblock.export(adapted.adapter, tmp_path / "equal", to="equal-rank")


def test_an_ambiguous_short_name_is_not_guessed(tmp_path):
    base = ["model.decoder.layers.0.q.weight", "model.text_model.layers.0.q.weight"]
    names = AdapterNames.of(["base_model.model.layers.0.q.lora_A.weight"], base, tmp_path)
    assert (names.renamed, names.modules) == ({}, {})


@pytest.mark.parametrize("kind", ["IA3", "LoHa"])
def test_what_peft_merges_is_put_right_or_refused(adapt, kind):
    options = {"IA3": {"feedforward_modules": []}, "LoHa": {"r": 4}}[kind]
    config = getattr(peft, f"{kind}Config")(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], **options)
    adapted = adapt(config=config)

    def logits():
        with torch.no_grad():
            return load_pair(str(adapted.base), str(adapted.adapter), device="cpu").tuned[0].model(input_ids=IDS).logits

    before = logits()
    adapted.rename(lambda name: name.replace("model.layers", "language_model.layers"))
    assert torch.equal(logits(), before)
    adapted.rename(lambda name: name.replace("layers.1.", "layers.8."))
    with pytest.raises(MidblockError, match=r"layers\.8\..* which its base has not"):
        logits()
    adapted.rewrite(lambda tensors: {name: value for name, value in tensors.items() if "layers.8." not in name})
    with pytest.raises(MidblockError, match=r"lacks .*layers\.1\..*which its config promises"):
        logits()
