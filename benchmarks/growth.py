"""How an analysis grows with the number of prompts, and steering with the number of blocks, on pico models.

Each size runs in a process of its own, so that its peak of memory is its own. The states that must be held are
N × (L+2) × D float64 numbers for each model; a phase's memory beyond them and the libraries is what this looks for.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from midblock import analyze, load_pair, steer
from midblock.base import generator
from midblock.runs.surroundings import peak_memory

WORDS = 290
LONG = (6, 17)  # tokens of a prompt, from and below


def write_models(
    folder: Path, width: int, blocks: int, *, device: str = "cpu", dtype: torch.dtype = torch.float32, **changes: int
) -> tuple[str, str]:
    """A Llama of a few thousand weights, and a copy whose weights all moved a little.

    Args:
        device: where the weights are drawn.
        **changes: of the config, for larger ones.
    """
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": WORDS + 10,
        "intermediate_size": 3 * width // 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        **changes,
    }
    config = LlamaConfig(
        hidden_size=width, num_hidden_layers=blocks, pad_token_id=0, bos_token_id=1, eos_token_id=2, **shape
    )
    with torch.device(device):
        model: Any = LlamaForCausalLM(config)
    base: LlamaForCausalLM = model.to(dtype)
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.ndim >= 2:  # the usual initialisation makes every layer look alike
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    _save(base, folder / "base")
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.05 * parameter.std() * torch.randn_like(parameter))
    _save(base, folder / "sft")
    return str(folder / "base"), str(folder / "sft")


def _save(model: LlamaForCausalLM, folder: Path) -> None:
    model.save_pretrained(folder)
    known = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {f"w{word}": word + 3 for word in range(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(known, "<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict(zip(("pad_token", "bos_token", "eos_token"), known, strict=False))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def write_prompts(path: Path, count: int) -> str:
    stream = generator(0, "growth")
    texts = (" ".join(f"w{word}" for word in stream.integers(WORDS, size=stream.integers(*LONG))) for _ in range(count))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def of_prompts(folder: Path, count: int, width: int, metrics: str) -> dict[str, float]:
    """Seconds and peak memory of each phase of an analysis of `count` prompts."""
    pair = load_pair(*write_models(folder, width, 3), device="cpu")
    before, start, worked = peak_memory(), time.perf_counter(), time.process_time()
    run = folder / "run"
    data = write_prompts(folder / "prompts.jsonl", count)
    analyze(pair, data, output_dir=run, num_samples=count, metrics=metrics, batch_tokens=4096)
    wall, worked = time.perf_counter() - start, time.process_time() - worked
    phases = json.loads((run / "run.json").read_text())["phases"]
    return {
        "before_mb": round(before / 2**20),
        **{f"{name}_s": phase["seconds"] for name, phase in phases.items()},
        **{f"{name}_mb": phase["peak_memory_mb"] for name, phase in phases.items()},
        "states_mb": round(2 * count * 5 * width * 8 / 2**20, 1),
        "wall_s": round(wall, 2),
        "processor_s": round(worked, 2),
    }


def of_blocks(folder: Path, blocks: int) -> dict[str, float]:
    """Seconds of steering a pico model of so many blocks, its scan included."""
    base, tuned = write_models(folder, 32, blocks)
    data = write_prompts(folder / "prompts.jsonl", 64)
    start = time.perf_counter()
    small = {"num_samples": 8, "num_directions_samples": 16, "max_new_tokens": 8, "num_texts": 2}
    steer(base, tuned, data, output_dir=folder / "run", device="cpu", **small)
    return {"wall_s": round(time.perf_counter() - start, 2), "peak_mb": round(peak_memory() / 2**20)}


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Print what each size took, and return it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, nargs="*", default=[100, 1000])
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--metrics", default="standard")
    parser.add_argument("--blocks", type=int, nargs="*", default=[])
    parser.add_argument("--alone", help=argparse.SUPPRESS)  # one size, in this process
    options = parser.parse_args(arguments)
    if options.alone:
        kind, _, size = options.alone.partition("=")
        with tempfile.TemporaryDirectory() as scratch:
            if kind == "prompts":
                found = of_prompts(Path(scratch), int(size), options.width, options.metrics)
            else:
                found = of_blocks(Path(scratch), int(size))
        print(json.dumps(found))
        return {options.alone: found}
    sizes = [f"prompts={each}" for each in options.prompts] + [f"blocks={each}" for each in options.blocks]
    return {size: _in_a_process(size, options) for size in sizes}


def _in_a_process(size: str, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.growth", "--alone", size, "--width", str(options.width)]
    ended = subprocess.run([*command, "--metrics", options.metrics], capture_output=True, text=True, check=True)
    found = json.loads(ended.stdout.strip().splitlines()[-1])
    print(size, json.dumps(found), flush=True)
    return found


if __name__ == "__main__":
    main()
