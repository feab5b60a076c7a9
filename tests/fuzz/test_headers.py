"""Headers of safetensors files: of a checkpoint, and of an adapter."""

import json
from pathlib import Path
from typing import Any

from .kind import Kind, cases_of
from .nasty import Spoil, broken, spoiled

CPU = ("--device", "cpu")


def header(file: Path) -> Any:
    content = file.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def write(file: Path, whole: Any, spoil: Spoil) -> None:
    """The spoiled header before the same bytes; a broken file is broken as a whole."""
    content = file.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    if spoil.how == "file":
        file.write_bytes(broken(content, spoil.what))
        return
    text = spoiled(whole, spoil)
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


OUTPUT = "model.layers.0.self_attn.o_proj.weight"
FAILED = tuple((1, Spoil("set", (OUTPUT, "data_offsets", 1), what)) for what in ("-Infinity", "100,000 brackets"))
CHECKPOINT = Kind(
    "safetensors header of a checkpoint", "sft/model.safetensors",
    (
        ("analyze", "start", "sft", "--weights-only", *CPU, "-o", "OUT"),
        ("merge", "start", "sft", "--alphas", "0,0.5,1", "-o", "OUT"),
        ("probe", "start", "sft", "--data", "sums.jsonl", "--num-samples", "4", *CPU, "-o", "OUT"),
    ),
    ("start", "sft", "sums.jsonl"), 9, header, write=write, kept=FAILED,
)  # fmt: skip
ADAPTER = Kind(
    "safetensors header of an adapter", "adapter/adapter_model.safetensors",
    (
        ("analyze", "start", "adapter", "--weights-only", *CPU, "-o", "OUT"),
        ("export", "adapter", "--to", "merged", "--output", "OUT"),
        ("export", "adapter", "--to", "equal-rank", "--output", "OUT"),
        ("probe", "start", "adapter", "--data", "sums.jsonl", "--num-samples", "4", *CPU, "-o", "OUT"),
    ),
    ("start", "adapter", "sums.jsonl"), 10, header, write=write,
)  # fmt: skip

KINDS = [CHECKPOINT, ADAPTER]

test = cases_of(KINDS)
