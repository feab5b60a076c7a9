"""A pair that is walked block by block against reading its files and against its blocks' bare forward passes.

A random pair of OLMo2-7B's shape (bfloat16, in files of a block each; written here, removed afterwards) is analysed
under a cap of 4 GB; the embedded model and a slightly changed copy with and without one. The files are dropped from the
system's cache before they are read, where the system takes that advice.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Olmo2Config
from transformers.models.olmo2.modeling_olmo2 import Olmo2DecoderLayer, Olmo2RotaryEmbedding

from benchmarks.partner import BASE, make_partner
from midblock.checkpoints import open_checkpoint

PROMPTS, TOKENS, CAP, CHUNK = 16, 64, "4GB", 2**24
SHAPE: dict[str, Any] = {
    "vocab_size": 100352,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}
LEAN = {"metrics": "cka,change_intensity,logit_kl,logit_agreement", "precision_floor": False}
FULL: dict[str, Any] = {}
CHILD = """
import json, sys, time
from midblock import analyze, load_pair
from midblock.checkpoints.safetensors_file import SafetensorsFile
from midblock.runs.surroundings import peak_memory
base, tuned, data, loading, options = (json.loads(each) for each in sys.argv[1:])
read, own = [], SafetensorsFile.read
def counted(self, name):
    read.append(self.entries[name].nbytes)
    return own(self, name)
SafetensorsFile.read = counted
start = time.perf_counter()
table = analyze(load_pair(base, tuned, **loading), data, **options)
wall = time.perf_counter() - start
rows = table.frame.value.fillna(0).tolist()
print(json.dumps({"wall_s": wall, "peak_gb": peak_memory() / 1e9, "read": sum(read), "rows": rows}))
"""


def write_model(folder: Path, blocks: int, seed: int) -> None:
    """A random checkpoint, a file at a time; blocks hold the same numbers, each moved on by one."""
    config = Olmo2Config(num_hidden_layers=blocks, dtype="bfloat16", **SHAPE)
    config.architectures = ["Olmo2ForCausalLM"]
    config.save_pretrained(folder)
    open_checkpoint(BASE).tokenizer().save_pretrained(folder)
    stream, index = torch.Generator().manual_seed(seed), dict[str, str]()
    wide, inner = config.hidden_size, config.intermediate_size
    outside = {"model.embed_tokens.weight": (config.vocab_size, wide), "lm_head.weight": (config.vocab_size, wide)}
    sides = {f"self_attn.{name}_proj.weight": (wide, wide) for name in "qkvo"}
    sides |= {"mlp.gate_proj.weight": (inner, wide), "mlp.up_proj.weight": (inner, wide)}
    sides |= {"mlp.down_proj.weight": (wide, inner)}
    norms = ["self_attn.q_norm", "self_attn.k_norm", "post_attention_layernorm", "post_feedforward_layernorm"]
    block = {name: _random(shape, stream) for name, shape in sides.items()}
    for number in range(blocks + 2):
        if number < blocks:
            named = {f"model.layers.{number}.{name}": value.roll(number, 0) for name, value in block.items()}
            named |= {f"model.layers.{number}.{name}.weight": torch.ones(wide, dtype=torch.bfloat16) for name in norms}
        else:
            name = list(outside)[number - blocks]
            named = {name: _random(outside[name], stream)}
            named |= {"model.norm.weight": torch.ones(wide, dtype=torch.bfloat16)} if number == blocks else {}
        file = f"model-{number + 1:05d}-of-{blocks + 2:05d}.safetensors"
        save_file(named, folder / file, {"format": "pt"})
        index |= dict.fromkeys(named, file)
        del named
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def _random(shape: tuple[int, int], stream: torch.Generator) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=stream)


def forget(files: Sequence[Path]) -> None:
    """Ask the system to drop files from its cache."""
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def reading(files: Sequence[Path]) -> float:
    """Seconds to read the files once, a chunk at a time."""
    start = time.perf_counter()
    buffer = bytearray(CHUNK)
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass
    return time.perf_counter() - start


def computing(blocks: int, kinds: Sequence[torch.dtype]) -> float:
    """Seconds of the bare forward passes: one block of random weights in memory, run as often as a walk runs one."""
    config = Olmo2Config(num_hidden_layers=1, **SHAPE)
    config._attn_implementation = "sdpa"
    total = 0.0
    for kind in dict.fromkeys(kinds):
        torch.manual_seed(0)
        block = Olmo2DecoderLayer(config, 0).to(kind).eval()
        for parameter in block.parameters():
            parameter.data.normal_(0, 0.02)
        states = torch.randn(PROMPTS, TOKENS, config.hidden_size, dtype=kind)
        positions = torch.arange(TOKENS)[None]
        with torch.inference_mode():
            tables = Olmo2RotaryEmbedding(config)(states, positions)
            block(states, position_embeddings=tables, position_ids=positions)
            times = []
            for _ in range(3):
                start = time.perf_counter()
                block(states, position_embeddings=tables, position_ids=positions)
                times.append(time.perf_counter() - start)
        total += min(times) * blocks * kinds.count(kind)
    return total


def child(base: Path | str, tuned: Path, data: Path | str, loading: dict[str, Any], options: dict[str, Any]) -> Any:
    """One analysis in a process of its own."""
    given = [
        json.dumps(each if isinstance(each, dict) else str(each)) for each in (base, tuned, data, loading, options)
    ]
    done = subprocess.run([sys.executable, "-c", CHILD, *given], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def large(folder: Path, blocks: int) -> dict[str, Any]:
    """The large pair."""
    for seed, name in enumerate(("base", "tuned")):
        (folder / name).mkdir()
        write_model(folder / name, blocks, seed)
    data = folder / "rows.jsonl"
    texts = [" ".join(f"{n} and {k} make {n + k}," for k in range(40)) for n in range(PROMPTS)]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    files = sorted(folder.glob("*/*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    forget(files)
    found: dict[str, Any] = {"gigabytes": size / 1e9, "blocks": blocks, "reading_s": reading(files)}
    half, wide = torch.bfloat16, torch.float32
    shared = {"num_samples": PROMPTS, "num_token_samples": PROMPTS, "max_length": TOKENS, "weights": False}
    for name, options, kinds in (("lean", LEAN, [half] * 2), ("standard", FULL, [half] * 3 + [wide])):
        computed = computing(blocks, kinds)
        forget(files)
        loading = {"dtype": "bfloat16", "device": "cpu", "max_memory": CAP}
        ran = child(folder / "base", folder / "tuned", data, loading, {**shared, **options})
        bound = max(found["reading_s"], computed)
        found[name] = {
            "wall_s": ran["wall_s"],
            "computing_s": computed,
            "wall_over_bound": ran["wall_s"] / bound,
            "peak_gb": ran["peak_gb"],
            "read_over_files": ran["read"] / size,
        }
    return found


def embedded(folder: Path) -> dict[str, Any]:
    """The embedded model with and without a cap."""
    partner = make_partner(folder / "partner")
    options = {"num_samples": 32, "num_token_samples": 16, "weights": False}
    given = (BASE, partner, "builtin:gsm_symbolic")
    ran: dict[str, list[Any]] = {name: [] for name in ("whole", "by_blocks")}
    for _ in range(2):
        for name, cap in (("whole", {}), ("by_blocks", {"max_memory": CAP})):
            ran[name].append(child(*given, {"device": "cpu", **cap}, options))
    walls = {name: min(each["wall_s"] for each in several) for name, several in ran.items()}
    return {
        "whole_s": walls["whole"],
        "by_blocks_s": walls["by_blocks"],
        "ratio": walls["by_blocks"] / walls["whole"],
        "equal": ran["whole"][0]["rows"] == ran["by_blocks"][0]["rows"],
        "whole_peak_gb": ran["whole"][0]["peak_gb"],
        "by_blocks_peak_gb": ran["by_blocks"][0]["peak_gb"],
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Print the figures of one run and return them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", help="where 29 GB are free; a temporary folder when left out")
    parser.add_argument("--blocks", type=int, default=32, help="of the large pair; 0 leaves it out")
    parser.add_argument("--embedded", action=argparse.BooleanOptionalAction, default=True)
    asked = parser.parse_args(arguments)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=asked.folder, prefix="midblock-large-") as scratch:
        if asked.blocks:
            found["large"] = large(Path(scratch), asked.blocks)
        if asked.embedded:
            found["embedded"] = embedded(Path(scratch))
    print(json.dumps(found, indent=2, default=float))
    return found


if __name__ == "__main__":
    main()
