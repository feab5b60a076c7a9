import json
import os
import struct
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from midblock.base import MidblockError
from midblock.checkpoints.builtin import BUILTIN, _gguf_of, builtin_folder
from midblock.checkpoints.gguf import convert_gguf, gguf_folder
from midblock.checkpoints.tensors import TensorReader

WIDTH, INNER, HEADS, VOCABULARY = 32, 64, 2, ["<s>", "</s>", *"abcdefgh", "ab", "cd"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch, request):
    if "embedded" not in request.keywords:
        monkeypatch.setenv("MIDBLOCK_CACHE", str(tmp_path / "cache"))


def write_pico(file, architecture="llama", template=None, tensors=None):
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name("pico")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(2)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(VOCABULARY) - 2))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    if template:
        writer.add_chat_template(template)
    for name, (codes, kind) in (tensors or random_tensors()).items():
        writer.add_tensor(name, codes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def random_tensors():
    drawn = {name: np.random.default_rng(len(name)).normal(size=shape) for name, shape in tensor_shapes().items()}
    return {name: (value.astype(np.float32), gguf.GGMLQuantizationType.F32) for name, value in drawn.items()}


def tensor_shapes():
    shapes = {"token_embd.weight": (len(VOCABULARY), WIDTH), "output_norm.weight": (WIDTH,)}
    for block in range(2):
        for name, shape in {
            "attn_norm": (WIDTH,),
            "attn_q": (WIDTH, WIDTH),
            "attn_k": (WIDTH // HEADS, WIDTH),
            "attn_v": (WIDTH // HEADS, WIDTH),
            "attn_output": (WIDTH, WIDTH),
            "ffn_norm": (WIDTH,),
            "ffn_gate": (INNER, WIDTH),
            "ffn_up": (INNER, WIDTH),
            "ffn_down": (WIDTH, INNER),
        }.items():
            shapes[f"blk.{block}.{name}.weight"] = shape
    return shapes


def check_same_model(file, folder):
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"
    ids = torch.arange(10)[None]
    direct = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(folder)
    assert not getattr(ours, "is_quantized", False)
    ours.float()  # raises on a model that calls itself quantised
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, direct(ids).logits)


def test_pico_converts(tmp_path, capfd):
    file = write_pico(tmp_path / "pico.gguf", template="{{ messages[0].content }}!")
    folder = gguf_folder(file)
    assert capfd.readouterr().err == "dequantising pico.gguf (once) …\n"
    check_same_model(file, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.encode("abcda", add_special_tokens=False) == [10, 11, 2]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "a!"
    with TensorReader.open(folder) as reader:
        assert all(reader.dtype(name) == torch.float32 for name in reader)
    for written in folder.glob("*.json"):
        assert str(tmp_path) not in written.read_text()


def permuted(weight, heads):
    """Rows of queries or keys in the order that llama.cpp keeps them."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


@pytest.mark.parametrize(
    "kind", [gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0], ids=lambda kind: kind.name
)
def test_a_llama_comes_back_with_the_values_that_were_written(kind, tmp_path):
    sizes = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_attention_heads": HEADS, "num_key_value_heads": 1}
    config = LlamaConfig(
        num_hidden_layers=2, vocab_size=len(VOCABULARY), max_position_embeddings=64, rms_norm_eps=1e-5, **sizes
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    tensors, meant = {}, {}
    for name, value in model.state_dict().items():
        weight = torch.randn(value.shape).div(WIDTH**0.5).numpy() if value.ndim == 2 else value.numpy()
        stored = kind if value.ndim == 2 else gguf.GGMLQuantizationType.F32
        module = name.removesuffix(".weight")
        block = module.split(".")[2] if ".layers." in module else None
        there = NAMES[module] if block is None else f"blk.{block}.{NAMES[module.split('.', 3)[3]]}"
        turned = {"attn_q": HEADS, "attn_k": 1}.get(there.rpartition(".")[2])
        codes = gguf.quantize(weight if turned is None else permuted(weight, turned), stored)
        tensors[f"{there}.weight"] = (codes, stored)
        meant[name] = torch.from_numpy(gguf.dequantize(gguf.quantize(weight, stored), stored))
    folder = gguf_folder(write_pico(tmp_path / "pico.gguf", tensors=tensors))
    with TensorReader.open(folder) as reader:
        assert set(reader) == set(meant)
        assert all(torch.equal(reader.read(name), value) for name, value in meant.items())
    model.load_state_dict(meant)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        torch.testing.assert_close(logits, model(ids).logits)


FETCHES = """
import sys
from pathlib import Path
def heard(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo") or (event == "import" and arguments[0] == "kernels"):
        print("fetched", event, arguments[:2])
sys.addaudithook(heard)
from midblock.checkpoints.gguf import convert_gguf
convert_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_nothing_is_fetched_to_read_one(tmp_path):
    shapes = tensor_shapes()
    kind = gguf.GGMLQuantizationType.Q8_0
    tensors = {
        name: (gguf.quantize(np.ones(shape, np.float32), kind), kind) if len(shape) == 2 else
        (np.ones(shape, np.float32), gguf.GGMLQuantizationType.F32) for name, shape in shapes.items()
    }  # fmt: skip
    file = write_pico(tmp_path / "pico.gguf", tensors=tensors)
    command = [sys.executable, "-W", "ignore", "-c", FETCHES, str(file), str(tmp_path / "out")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == ""
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_cached_by_content(tmp_path):
    first = gguf_folder(write_pico(tmp_path / "one.gguf"))
    assert gguf_folder((tmp_path / "one.gguf").rename(tmp_path / "two.gguf")) == first
    assert gguf_folder(write_pico(tmp_path / "three.gguf", template="x")) != first


def test_unsupported_architecture(tmp_path):
    with pytest.raises(MidblockError, match=r"cannot convert .*rwkv6 is not supported"):
        gguf_folder(write_pico(tmp_path / "pico.gguf", architecture="rwkv6"))
    assert not list((tmp_path / "cache" / "gguf").glob("[!.]*"))


@pytest.mark.parametrize("keep", [4, 7, 20, 200, 700, 1500, -100])
def test_truncated(tmp_path, keep):
    file = write_pico(tmp_path / "pico.gguf")
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(MidblockError, match=r"cannot convert .*pico\.gguf"):
        gguf_folder(file)


def told(file, key, value):
    """A number in the file's header changed."""
    content = bytearray(file.read_bytes())
    start = content.find(key) + len(key) + 4
    content[start : start + 4] = struct.pack("<I", value)
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (b"llama.block_count", 10**9, "block_count is 1000000000, but it holds 20 tensors"),
        (b"llama.block_count", 3, r"lacks the tensor model\.layers\.2"),
        (b"llama.embedding_length", 0, "cannot convert"),
        (b"llama.embedding_length", 2**31 - 1, "cannot convert"),
        (b"llama.attention.head_count", 0, "cannot convert"),
    ],
)
def test_a_header_that_is_not_that_of_the_tensors(tmp_path, key, value, message):
    file = write_pico(tmp_path / "pico.gguf")
    told(file, key, value)
    with pytest.raises(MidblockError, match=message) as raised:
        gguf_folder(file)
    assert "\n" not in str(raised.value)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.gguf")
    with pytest.raises(MidblockError, match="it is a pipe, no file"):
        gguf_folder(tmp_path / "x.gguf")


def test_garbage(tmp_path):
    file = tmp_path / "x.gguf"
    file.write_bytes(b"hello")
    with pytest.raises(MidblockError, match=r"x\.gguf is no GGUF file"):
        gguf_folder(file)
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60) + bytes(100))
    with pytest.raises(MidblockError, match="cannot convert"):
        gguf_folder(file)


def test_package_missing(tmp_path, monkeypatch):
    file = write_pico(tmp_path / "pico.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MidblockError, match=r"pip install \"midblock\[demo\]\""):
        convert_gguf(file, tmp_path)


@pytest.mark.embedded
def test_embedded_model_is_the_ggufs():
    folder = builtin_folder("smollm2-135m-instruct")
    with _gguf_of(BUILTIN["smollm2-135m-instruct"]) as file:
        check_same_model(file, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert "<|im_start|>user\nHi<|im_end|>" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False
    )
