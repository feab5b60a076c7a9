"""Which engine is chosen, and that a cap is kept."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import save_file

from midblock.base import MidblockError
from midblock.checkpoints import load_models
from midblock.checkpoints.footprint import available_memory
from midblock.trace.engine import BLOCKS, WHOLE, choose_engine

CHILD = """
import sys
import midblock
from midblock.runs.surroundings import peak_memory
pair = midblock.load_pair(*sys.argv[1:3], device="cpu", max_memory=sys.argv[3])
options = {"num_samples": 6, "num_token_samples": 4, "max_length": 16, "weights": False}
midblock.analyze(pair, "builtin:chain_sum", metrics="cka,change_own,logit_kl", **options)
print(peak_memory())
"""


@pytest.fixture
def far_too_large(tokenizer, tmp_path):
    """A checkpoint of zeros that memory does not hold; on disk it takes no place."""
    inner, wide = available_memory() // 50 // (3 * 64 * 4), 64
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=wide, intermediate_size=inner, num_hidden_layers=64, num_attention_heads=4
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with torch.device("meta"):
        state = transformers.LlamaForCausalLM(config).state_dict()
    header, at = {}, 0
    for name, value in state.items():
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [at, at + value.nbytes]}
        at += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    return str(tmp_path)


def test_what_does_not_fit_is_walked_block_by_block_by_itself(far_too_large):
    pair = load_models(far_too_large, device="cpu", dtype="float32")
    engine = choose_engine(pair, tokens=64)
    assert engine.kind == BLOCKS
    assert engine.notes[0].startswith("The models were walked block by block: whole they take")
    assert list(pair.in_parts) == [pair.base.name]
    assert 0 < engine.limit < engine.cap
    pair.close_parts()


def test_what_fits_is_walked_whole(pico, tokenizer, tmp_path):
    pico("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    pair = load_models(str(tmp_path), device="cpu")
    assert choose_engine(pair, tokens=64).kind == WHOLE
    assert not pair.in_parts
    with pytest.raises(MidblockError, match="block by block these models need"):  # a million times it does not fit
        choose_engine(pair, tokens=64, copies=10**6)
    pair.close_parts()


@pytest.fixture
def half_a_gigabyte(tokenizer, tmp_path):
    """Two checkpoints that take 0.4 GB each once they are float32; a tensor of each shape is written often."""
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=8
    )
    config.architectures = ["LlamaForCausalLM"]
    for seed, name in enumerate(("base", "sft")):
        with torch.device("meta"):
            state = transformers.LlamaForCausalLM(config).state_dict()
        torch.manual_seed(seed)
        drawn = {shape: torch.randn(shape, dtype=torch.bfloat16) / 32 for shape in {v.shape for v in state.values()}}
        config.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        whole = {key: drawn[value.shape].clone() for key, value in state.items()}
        save_file(whole, tmp_path / name / "model.safetensors", {"format": "pt"})
    return tmp_path


def test_a_cap_is_kept(half_a_gigabyte):
    cap = 900_000_000
    places = [str(half_a_gigabyte / name) for name in ("base", "sft")]
    done = subprocess.run([sys.executable, "-c", CHILD, *places, str(cap)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) <= cap
