"""Names that PEFT reads as something else: asked for by parameter, saved and read back, or refused before training."""

import pytest
import torch
import transformers
from peft import PeftModel

from midblock.base import LayerPlan, MidblockError
from midblock.tuning.place.adapter_plan import place_adapters
from midblock.tuning.place.adapters import attach
from midblock.tuning.place.peft_names import rewritten_by_peft
from midblock.tuning.settings import Placement

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
IDS = torch.tensor([[5, 9, 33, 7, 50]])


def build(kind, **fields):
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(
        transformers.CONFIG_MAPPING[kind](**{**SMALL, **fields})
    ).eval()


def adapted(model, asked):
    settings = Placement(lora_r=2, target_modules=asked)
    adapters = place_adapters(model, LayerPlan.parse("all", 2), settings)
    return adapters, attach(model, adapters, settings, seed=0)


def test_a_plain_family_is_left_alone():
    assert rewritten_by_peft(build("llama"), ["model.layers.0.mlp.gate_proj"]) == frozenset()


def test_layers_that_are_taken_for_experts_are_found():
    names = ["model.layers.0.mlp.gate_proj", "model.layers.0.self_attn.gate_proj", "model.layers.0.self_attn.q_proj"]
    assert rewritten_by_peft(build("afmoe", num_dense_layers=1), names) == frozenset(names[:2])


@pytest.mark.parametrize("asked", ["attention", "mlp", "all"])
def test_adapters_on_them_are_read_back_by_peft(asked, tmp_path):
    adapters, tuned = adapted(build("afmoe", num_dense_layers=1), asked)
    assert any(target.by_parameter and not target.projection.stacked for target in adapters.targets)
    with torch.no_grad():
        for name, value in tuned.named_parameters():
            if ".lora_B." in name:
                value.normal_(std=0.1)
        expected = tuned(input_ids=IDS, use_cache=False).logits
        plain = tuned.get_base_model()
    tuned.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build("afmoe", num_dense_layers=1), str(tmp_path)).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=IDS, use_cache=False).logits, expected)
    assert plain is tuned.get_base_model()


def test_names_that_would_be_read_as_others_are_refused_before_training():
    model = build("laguna", shared_expert_intermediate_size=16)
    with pytest.raises(
        MidblockError, match=r"PEFT would read the adapter on \S+shared_experts\S+ back under another name"
    ):
        adapted(model, "mlp")


def test_weights_that_blocks_share_are_refused():
    model = build("llama")
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(MidblockError, match=r"layers\.0\.mlp\.up_proj\.weight is one weight with \S+layers\.1\.mlp"):
        adapted(model, "up_proj")
