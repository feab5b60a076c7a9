"""Multimodal checkpoints at pico size: the text decoder of a family, nested beside a tower for pictures."""

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

from .extras import GEMMA4
from .zoo import changed, filled, sizes

TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_TOWER = {"hidden_size": 16, "intermediate_size": 16, "depth": 2, "num_heads": 2, "out_hidden_size": 32}
LLAMA4_TOWER = {**TOWER, "intermediate_size": 64, "vision_output_dim": 16, "projector_input_dim": 16}
# token numbers in the vocabulary, that no text has
IDS = {"image_token_id": 310, "video_token_id": 311, "vision_start_token_id": 312, "vision_end_token_id": 313}
INDICES = {"image_token_index": 310, "boi_token_index": 311, "eoi_token_index": 312}
GEMMA4_IDS = {
    "image_token_id": 310,
    "boi_token_id": 311,
    "eoi_token_id": 312,
    "video_token_id": 313,
    "audio_token_id": 314,
    "boa_token_id": 315,
    "eoa_token_index": 316,
}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}

# The family of the text decoder, fields of its config beside those of the zoo, fields of the whole.
WRAPPERS: Mapping[str, tuple[str, Mapping[str, Any], Mapping[str, Any]]] = {
    "gemma3": ("gemma3_text", {}, {"vision_config": TOWER, "mm_tokens_per_image": 1, **INDICES}),
    "gemma4": (
        "gemma4_text",
        GEMMA4,
        {
            "vision_config": {**TOWER, "num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 16},
            **GEMMA4_IDS,
        },
    ),
    "llama4": ("llama4_text", {}, {"vision_config": {**LLAMA4_TOWER, "projector_output_dim": 16}, **INDICES}),
    "llava": ("llama", {}, {"vision_config": {"model_type": "clip_vision_model", **TOWER}, "image_token_index": 310}),
    "mistral3": (
        "mistral",
        {},
        {
            "vision_config": {"model_type": "pixtral", **TOWER, "head_dim": 8},
            "image_token_index": 310,
            "spatial_merge_size": 1,
        },
    ),
    "qwen2_5_vl": ("qwen2_5_vl_text", MROPE, {"vision_config": {**QWEN_TOWER, "fullatt_block_indexes": [1]}, **IDS}),
    "qwen3_5": ("qwen3_5_text", {}, {"vision_config": {**QWEN_TOWER, "num_position_embeddings": 16}, **IDS}),
    "qwen3_vl": (
        "qwen3_vl_text",
        MROPE,
        {
            "vision_config": {**QWEN_TOWER, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
            **IDS,
        },
    ),
}
# whatever else stands beside the decoder, in memory and on disk
OTHER_MODALITY = re.compile("vision|visual|projector")
# transformers has no causal language model of these decoders alone
NEVER_ALONE = ("qwen2_5_vl", "qwen3_vl")


def make_wrapper(kind: str) -> nn.Module:
    """A multimodal model in float32, filled."""
    text, inside, outside = WRAPPERS[kind]
    config = CONFIG_MAPPING[kind](text_config={"model_type": text, **sizes(text, **inside)}, **outside)
    torch.manual_seed(0)
    return filled(AutoModelForImageTextToText.from_config(config, dtype=torch.float32))


def in_decoder(name: str) -> bool:
    """Whether a parameter or a stored tensor belongs to the text decoder."""
    return not OTHER_MODALITY.search(name)


def tuned_wrapper(base: nn.Module) -> nn.Module:
    """A copy whose text decoder moved; its towers are the same to the bit."""
    return changed(base, moves=in_decoder)


def alone(wrapper: nn.Module) -> nn.Module:
    """The text decoder as a causal language model of its own, with the wrapper's weights."""
    config: Any = copy.deepcopy(wrapper.config.text_config)  # type: ignore[union-attr]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    theirs = {own_name(name): value for name, value in wrapper.state_dict().items() if in_decoder(name)}
    told = model.load_state_dict(theirs, strict=False)
    assert not told.unexpected_keys, told
    assert set(told.missing_keys) <= {"lm_head.weight"}, told
    model.tie_weights()
    return model


def own_name(name: str) -> str:
    """A decoder's parameter as it is called where the decoder stands alone."""
    inner = name.split("language_model.")[-1]
    return inner if inner.startswith(("lm_head", "model.")) else f"model.{inner}"
