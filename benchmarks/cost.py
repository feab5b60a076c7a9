"""What an analysis would cost at sizes that are not here, by the code's own arithmetic: `python -m benchmarks.cost`.

Checkpoints of the right shapes are written as holes in files, which take no room on most disks; nothing is computed. It
makes the table of docs/cost.md.
"""

from __future__ import annotations

import argparse
import json
import struct
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from midblock import load_pair
from midblock.analysis.settings import AnalysisSettings
from midblock.checkpoints import Anatomy
from midblock.checkpoints.footprint import Footprint
from midblock.checkpoints.skeleton import skeleton_of
from midblock.studies.doctor.demand import Demand, Shape
from midblock.studies.doctor.pair_checks import file_bytes
from midblock.trace.engine import engine_of, least_by_blocks

GIB = 2**30
SHAPES: Mapping[str, dict[str, Any]] = {
    "7B": {"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11_008, "num_attention_heads": 32,
           "num_key_value_heads": 32, "vocab_size": 100_352},
    "32B": {"num_hidden_layers": 64, "hidden_size": 5120, "intermediate_size": 27_648, "num_attention_heads": 40,
            "num_key_value_heads": 8, "vocab_size": 100_352},
    "70B": {"num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28_672, "num_attention_heads": 64,
            "num_key_value_heads": 8, "vocab_size": 128_256},
}  # fmt: skip


def write_hollow(folder: Path, shape: Mapping[str, Any]) -> str:
    """A bfloat16 checkpoint whose file has a header and a hole."""
    folder.mkdir(parents=True)
    config = LlamaConfig(tie_word_embeddings=False, dtype="bfloat16", architectures=["LlamaForCausalLM"], **shape)
    config.save_pretrained(folder)
    entries, end = dict[str, Any](), 0
    for name, value in skeleton_of(config).state_dict().items():
        start, end = end, end + 2 * value.numel()
        entries[name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [start, end]}
    head = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    file = folder / "model.safetensors"
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(head)) + head)
        out.truncate(8 + len(head) + end)
    return str(folder)


def cost(folder: Path, shape: Mapping[str, Any]) -> dict[str, float]:
    """Of a base and one tuned model at the defaults."""
    pair = load_pair(*(write_hollow(folder / name, shape) for name in ("base", "sft")), dtype="bfloat16", device="cpu")
    settings = AnalysisSettings()
    checkpoints = [each.checkpoint for each in pair if each.checkpoint is not None]
    anatomy = Anatomy.of(skeleton_of(checkpoints[0].config))
    footprints = [Footprint.of(each, torch.bfloat16) for each in checkpoints]
    shown = Demand.of(anatomy, footprints, Shape.asked(settings), settings, torch.bfloat16, file_bytes(pair))
    least = {}
    for rounded in (True, False):
        with engine_of(pair):
            least[rounded] = least_by_blocks(pair, tokens=settings.batch_tokens, rounded=rounded)
    return {
        "read_gib": sum(each.stat().st_size for each in folder.rglob("*.safetensors")) / GIB,
        "block_gib": 2 * sum(each.numel() for each in anatomy.blocks[0].parameters()) / GIB,
        "least_gib": least[True] / GIB,
        "least_without_floor_gib": least[False] / GIB,
        **{name: value for name, value in vars(shown).items() if isinstance(value, int | float)},
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Print what each size costs, and return it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="*", choices=list(SHAPES), default=list(SHAPES))
    options = parser.parse_args(arguments)
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for size in options.sizes:
            found[size] = cost(Path(scratch) / size, SHAPES[size])
            print(size, json.dumps({name: round(value, 3) for name, value in found[size].items()}), flush=True)
    return found


if __name__ == "__main__":
    main()
