"""GGUF files of pico models, written as llama.cpp's converter does."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

WIDTH, INNER, HEADS, KEY_HEADS, BLOCKS = 32, 48, 4, 2, 2
WORDS = ["<s>", "</s>", *map(chr, range(33, 127)), "ab"]
SIZES = {
    "vocab_size": len(WORDS), "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS, "max_position_embeddings": 4096,
    "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.down_proj": "ffn_down", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys in the order that llama.cpp keeps them."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def random_model(kind: str, **fields: Any) -> nn.Module:
    """A model whose every parameter matters, biases too."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**{**SIZES, **fields}), dtype=torch.float32)
    for name, value in model.named_parameters():
        value.data.normal_(mean=float("norm.weight" in name), std=WIDTH**-0.5)
    return model.eval()


def write_gguf(
    file: Path,
    model: nn.Module,
    architecture: str,
    settings: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    merges: tuple[str, ...] = ("a b",),
    words: list[str] = WORDS,
) -> Path:
    """Write a model with what is usual of it, with further settings of the architecture and further tensors."""
    writer = gguf.GGUFWriter(file, architecture)
    norm = "layer_norm_epsilon" if architecture == "starcoder2" else "layer_norm_rms_epsilon"
    usual = {
        "context_length": 4096, "embedding_length": WIDTH, "block_count": BLOCKS, "feed_forward_length": INNER,
        "attention.head_count": HEADS, "attention.head_count_kv": KEY_HEADS, f"attention.{norm}": 1e-5,
        "rope.freq_base": 10000.0, "rope.dimension_count": WIDTH // HEADS, "vocab_size": len(WORDS),
    }  # fmt: skip
    for key, value in {**usual, **settings}.items():
        add_of: dict[type, Callable[..., None]] = {
            bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string
        }  # fmt: skip
        add_of[type(value)](f"{architecture}.{key}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(words) - 2))
    writer.add_token_merges(list(merges))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, value in model.state_dict().items():
        module, _, ending = name.rpartition(".")
        block = module.split(".")[2] if ".layers." in module else None
        there = NAMES[module] if block is None else f"blk.{block}.{NAMES[module.split('.', 3)[3]]}"
        heads = {"attn_q": HEADS, "attn_k": KEY_HEADS}.get(there.rpartition(".")[2])
        weight = value.numpy() if heads is None or architecture != "llama" else permuted(value.numpy(), heads)
        writer.add_tensor(f"{there}.{ending}", weight)
    for name, weight in tensors.items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
