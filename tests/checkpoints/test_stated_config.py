"""Strangers' configs, on real folders: each nonsense is refused in one line, before a model is built."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from midblock.base import MidblockError
from midblock.checkpoints import EffectiveTensors, LoadSettings, check_readable, load_model, open_checkpoint
from midblock.checkpoints.checkpoint_files import write_config
from midblock.checkpoints.config import load_tokenizer
from midblock.checkpoints.fitting import check_memory
from midblock.checkpoints.stated_config import check_stated


def read_again(folder: Path, changes: dict[str, Any]) -> None:
    """Read a folder, its config changed, as verbs do: weights, then the model."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    checkpoint = open_checkpoint(str(folder))
    EffectiveTensors.of_checkpoint(checkpoint).close()
    load_model(checkpoint, LoadSettings(device="cpu", dtype="float32"))


# what is refused by the key's rule alone
STATED = [
    ("model_type", {}), ("model_type", 7), ("architectures", [1]), ("architectures", {}), ("dtype", 7),
    ("torch_dtype", "nonsense"), ("dtype", True), ("vocab_size", 0), ("vocab_size", -1), ("vocab_size", 10**30),
    ("hidden_size", 0), ("num_hidden_layers", 0), ("num_hidden_layers", -1), ("num_hidden_layers", 10**7),
    ("num_local_experts", 10**6), ("num_experts", 10**6), ("head_dim", 10**30), ("num_attention_heads", 10**9),
    ("num_labels", 10**9), ("rms_norm_eps", -1), ("rms_norm_eps", float("inf")), ("attention_dropout", 2),
    ("rope_theta", 0), ("max_position_embeddings", -1), ("quantization_config", "x"), ("quantization_config", {}),
    ("quantization_config", {"quant_method": 7}), ("quantization_config", {"load_in_4bit": "yes"}),
    ("text_config", 7), ("weight_block_size", ["a", 0]), ("weight_block_size", [0, 0]),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), STATED)
@pytest.mark.parametrize("inside", [False, True])
def test_what_holds_of_no_model_names_the_key(key, value, inside):
    stated = {"model_type": "llama", "hidden_size": 32, key: value}
    with pytest.raises(MidblockError, match=f"config.json: {key} is ") as raised:
        check_stated({"text_config": stated} if inside and key != "text_config" else stated, Path("config.json"))
    assert "\n" not in str(raised.value)


def test_what_real_configs_say_passes():
    said = {
        "model_type": "jamba", "dtype": "bfloat16", "torch_dtype": "torch.float16", "architectures": None,
        "num_experts": 0, "head_dim": None, "num_key_value_heads": [1, 2], "mlp_only_layers": [], "layers": None,
        "time_step_limit": [0.0, float("inf")], "quantization_config": None, "sliding_window": -1, "pad_token_id": -1,
        "attention_dropout": 0.0, "rope_theta": 5e6, "rope_parameters": {"full": {"rope_theta": 1e4}}, "n_inner": None,
        "vision_config": {"depth": 32, "hidden_size": 1280},
        "vision_feature_layer": -1, "num_routed_experts": 16384, "layer_rope_theta": [10000.0, 0],
        "max_position_embeddings": 10**7,
    }  # fmt: skip
    check_stated(said, Path("config.json"))
    old = {"quantization_config": {"load_in_4bit": True, "bnb_4bit_compute_dtype": "float16"}}
    check_stated(old, Path("config.json"))


# what only the weights, or the model that would be built, can tell
UNFIT = {
    "llama": [
        ({"vocab_size": 10**12}, r"its config wants \[1000000000000, 32\] \(its vocab_size is not"),
        ({"vocab_size": 299}, r"its config wants \[299, 32\]"),
        ({"hidden_size": 10**9}, "its hidden_size is not"),
        ({"intermediate_size": 10**9}, "its intermediate_size is not"),
        ({"head_dim": 10**9}, "its config wants"),
        ({"head_dim": 0}, "no causal language model"),
        ({"num_key_value_heads": 0}, "no causal language model"),
        ({"num_hidden_layers": 9999}, "num_hidden_layers is 9999, but the files hold 30 tensors"),
        ({"num_hidden_layers": 4}, "counts 4 blocks, its files hold nothing of block 3"),
        ({"rope_scaling": {"rope_type": "nonsense"}}, "no causal language model"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "a"}}, "no causal language model"),
        ({"hidden_act": "nonsense"}, "no causal language model"),
        ({"dtype": "float8_e4m3fn"}, "no causal language model"),
        ({"text_config": {"hidden_size": 32}}, "a llama has no text_config"),
        ({"quantization_config": {"quant_method": "nonsense"}}, "the unknown method 'nonsense'"),
    ],
    "gpt2": [
        ({"n_embd": 10**6}, "its config wants"),
        ({"n_embd": 10**9}, "no causal language model"),
        ({"n_layer": 600}, "n_layer is 600, but the files hold"),
        ({"n_head": 0}, "is not valid|no causal language model"),
        ({"n_positions": 10**6}, r"wpe\.weight is .*n_positions is not"),
    ],
    "mixtral": [
        ({"num_local_experts": 9000}, "num_local_experts is 9000"),
        ({"num_local_experts": 3}, "its config wants"),
        ({"num_experts_per_tok": 0}, None),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("family", "changes", "message"), [(f, *case) for f, cases in UNFIT.items() for case in cases])
def test_what_does_not_go_with_the_weights(family, changes, message, saved, pico):
    folder = saved(pico(family), "model")
    if message is None:
        read_again(folder, changes)
        return
    with pytest.raises(MidblockError, match=message) as raised:
        read_again(folder, changes)
    assert "\n" not in str(raised.value)


def test_memory_that_no_file_speaks_of_is_not_taken(saved):
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 300, "max_position_embeddings": 64}
    config = GPTNeoConfig(**sizes, attention_types=[[["global", "local"], 1]], bos_token_id=1, eos_token_id=2)
    folder = saved(GPTNeoForCausalLM(config), "model")
    read_again(folder, {"window_size": 32})
    masks = torch.device("meta")
    with masks:  # its masks are as wide as it has positions, and in no file
        wide = GPTNeoForCausalLM(GPTNeoConfig(**{**sizes, "max_position_embeddings": 40_000}, num_labels=2,
                                              attention_types=[[["global", "local"], 1]]))  # fmt: skip
    with pytest.raises(MidblockError, match=r"its config asks for transformer.*bias of 1\.5 GiB, its files hold 0\.1"):
        check_memory(wide, 10**5, "model")


def retype(folder: Path, kind: torch.dtype, name: str = "model.layers.1.self_attn.q_proj.weight") -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[name] = (100 * tensors[name]).to(kind)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", [torch.int8, torch.int32, torch.int64, torch.bool, torch.complex64])
def test_whole_numbers_are_no_weights(kind, saved, pico):
    folder = saved(pico("llama"), "model")
    retype(folder, kind)
    message = r"model stores model\.layers\.1\.self_attn\.q_proj\.weight as codes"
    with pytest.raises(MidblockError, match=message):
        check_readable(EffectiveTensors.of_checkpoint(open_checkpoint(str(folder))))
    with pytest.raises(MidblockError, match=message):
        read_again(folder, {})


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "generation_config.json", "tokenizer.json"])
def test_a_pipe_among_a_models_files_is_told_before_anybody_waits(name, saved, pico):
    folder = saved(pico("llama"), "model")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(MidblockError, match=f"{name} is a pipe, no file"):
        open_checkpoint(str(folder))
    with pytest.raises(MidblockError, match="is a pipe, no file"):
        load_tokenizer(folder)


def test_links_in_a_ring_and_folders_in_a_files_place(saved, pico):
    folder = saved(pico("llama"), "model")
    for name in ("config.json", "model.safetensors"):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / name).symlink_to(name)
        with pytest.raises(MidblockError, match=r"cannot read|no weights"):
            read_again_as_it_is(folder)
        (folder / name).unlink()
        (folder / name).mkdir()
        with pytest.raises(MidblockError, match="it is a folder, no file"):
            read_again_as_it_is(folder)
        (folder / name).rmdir()
        (folder / name).write_bytes(kept)
    read_again_as_it_is(folder)


def read_again_as_it_is(folder: Path) -> None:
    EffectiveTensors.of_checkpoint(open_checkpoint(str(folder))).close()


TOKENIZERS = [
    ("tokenizer.json", "", "cannot load the tokenizer"),
    ("tokenizer.json", "[" * 10**5, "cannot load the tokenizer"),
    ("tokenizer.json", '{"model": 7}', "cannot load the tokenizer"),
    ("tokenizer_config.json", "[1]", "holds no JSON object"),
    ("tokenizer_config.json", "[" * 10**5, "nested more than"),
    ("tokenizer_config.json", '{"model_max_length": "x"}', "model_max_length is 'x', not a number"),
    ("tokenizer_config.json", '{"chat_template": 7}', "chat_template is 7, not a template"),
    ("tokenizer_config.json", '{"tokenizer_class": 7}', "tokenizer_class is 7"),
    ("tokenizer_config.json", '{"eos_token": 7}', "cannot load the tokenizer"),
    ("special_tokens_map.json", "[1]", "cannot load the tokenizer"),
    ("chat_template.jinja", b"\xff\xfe", "cannot load the tokenizer"),
]


@pytest.mark.parametrize(("name", "content", "message"), TOKENIZERS)
def test_tokenizers_of_other_types(name, content, message, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(MidblockError, match=message) as raised:
        load_tokenizer(tmp_path)
    assert "\n" not in str(raised.value)


def test_infinity_stays_in_a_config_that_is_written_again(saved, pico, tmp_path):
    folder = saved(pico("llama"), "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "time_step_limit": [0.0, float("inf")]}))
    (tmp_path / "made").mkdir()
    write_config(folder, tmp_path / "made", {"dtype": "bfloat16"})
    assert json.loads((tmp_path / "made" / "config.json").read_text())["time_step_limit"] == [0.0, float("inf")]
