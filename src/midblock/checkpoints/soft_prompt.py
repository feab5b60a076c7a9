"""SoftPrompt: n vectors that stand before a prompt's tokens, in a folder that PEFT's prompt tuning reads too.

`adapter_config.json` and `adapter_model.safetensors` are PEFT's; `soft_prompt.json` beside them says what PEFT's format
cannot: where the vectors stand, and which weights they were made for. PEFT puts them at the very start, before a token
that begins the text: so does "start", and what others load is what was trained. "after-bos" is read by midblock alone:
in PEFT the same file stands before that token, which is another model. Cost: n × D numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from safetensors.torch import save_file
from torch import Tensor

from midblock.base import MidblockError, replace_atomically, unknown, write_json
from midblock.base.json_file import read_object
from midblock.base.plain_file import check_plain_folder
from midblock.checkpoints.reference import made_inside
from midblock.checkpoints.tensors import TensorReader

CONFIG, WEIGHTS, ABOUT = "adapter_config.json", "adapter_model.safetensors", "soft_prompt.json"
KIND, TENSOR, FORMAT = "PROMPT_TUNING", "prompt_embeddings", 1
START, AFTER_BOS = "start", "after-bos"
POSITIONS = (START, AFTER_BOS)


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """Vectors that a model is given before a prompt's tokens.

    Attributes:
        values: the vectors, as the embedding would put them out.
        base: reference of the model they are put before.
        position: "start", the very start; "after-bos", behind the token that begins a text where there is one.
        bos: that token's id; None where it is not known, and then "after-bos" is refused.
        weight_hash: of the model they were made for; None where nobody recorded it.
        made: how they were made, recorded.
        folder: where they were read from; None where they are in memory only.
    """

    values: Float32[Tensor, "n D"]
    base: str
    position: str = START
    bos: int | None = None
    weight_hash: str | None = None
    made: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.position not in POSITIONS:
            raise unknown("position", self.position, POSITIONS)
        if self.position == AFTER_BOS and self.bos is None:
            what = "a soft prompt after the token that begins a text needs that token's id"
            raise MidblockError(what, hint=f"position {START}")
        if not len(self.values) or not bool(torch.isfinite(self.values).all()):
            raise MidblockError("a soft prompt holds no vector, or a number that is not finite")

    def __len__(self) -> int:
        """n, the number of vectors."""
        return len(self.values)

    @property
    def width(self) -> int:
        """D."""
        return self.values.shape[1]

    @property
    def content_hash(self) -> str:
        """SHA-256 of the numbers and of where they stand."""
        digest = hashlib.sha256(repr((tuple(self.values.shape), self.position, self.bos)).encode())
        digest.update(self.values.reshape(-1).numpy().data)
        return digest.hexdigest()

    @classmethod
    def open(cls, folder: Path | str) -> SoftPrompt:
        """Read a folder of PEFT's prompt tuning, ours or another's.

        Raises:
            MidblockError: it holds another kind of adapter, a file is missing or broken, or numbers that contradict it.

        Example:
            >>> len(SoftPrompt.open("runs/erase/prompt"))
            20
        """
        folder = made_inside(Path(folder))
        check_plain_folder(folder)
        config = read_object(folder / CONFIG)
        if config.get("peft_type") != KIND:
            raise MidblockError(f"{folder} holds {config.get('peft_type')}, no soft prompt", hint=f"peft_type {KIND}")
        values = _values(folder)
        promised = (config.get("num_virtual_tokens"), config.get("token_dim"))
        if tuple(values.shape) != promised or config.get("num_transformer_submodules") not in (None, 1):
            found = " × ".join(map(str, values.shape))
            what = f"{folder}: {WEIGHTS} holds {found} numbers, {CONFIG} promises {' × '.join(map(str, promised))}"
            raise MidblockError(what, hint="the two files are not of one soft prompt")
        return cls(values, str(config.get("base_model_name_or_path") or ""), **_about(folder), folder=folder)

    def write(self, folder: Path | str, *, config: Any = None) -> None:
        """Write the folder, in PEFT's format.

        Args:
            config: of the text model it is put before: PEFT asks for its depth and number of heads.

        Raises:
            MidblockError: the disk is full, or the place cannot be written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with replace_atomically(folder / WEIGHTS) as path:
            save_file({TENSOR: self.values.contiguous()}, path)
        write_json(folder / CONFIG, self._as_peft(config))
        about = {"format": FORMAT, "position": self.position, "bos": self.bos, "weight_hash": self.weight_hash}
        write_json(folder / ABOUT, {**about, "made": dict(self.made)})

    def _as_peft(self, config: Any) -> dict[str, Any]:
        return {
            "peft_type": KIND,
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base,
            "num_virtual_tokens": len(self),
            "token_dim": self.width,
            "num_transformer_submodules": 1,
            "num_attention_heads": getattr(config, "num_attention_heads", None),
            "num_layers": getattr(config, "num_hidden_layers", None),
            "prompt_tuning_init": "RANDOM",
            "inference_mode": True,
        }


def is_soft_prompt(folder: Path) -> bool:
    """Whether a folder, or a run folder of `midblock erase`, says that it is one."""
    file = made_inside(folder) / CONFIG
    return file.is_file() and read_object(file).get("peft_type") == KIND


def _values(folder: Path) -> Tensor:
    file = folder / WEIGHTS
    if not file.is_file():
        raise MidblockError(f"{folder} lacks {WEIGHTS}", hint="a pickled prompt is not read: save it as safetensors")
    with TensorReader.open(file) as tensors:
        if tensors.names != (TENSOR,) or len(tensors.shape(TENSOR)) != 2:
            raise MidblockError(f"{file} holds {', '.join(tensors.names[:3])}, not the one matrix {TENSOR}")
        return tensors.read(TENSOR).float().clone()


def _about(folder: Path) -> dict[str, Any]:
    """What the file beside PEFT's says; of a prompt from elsewhere, what PEFT does."""
    file = folder / ABOUT
    if not file.exists():
        return {}
    found = read_object(file)
    if found.get("format") != FORMAT:
        raise MidblockError(f"{file} has format {found.get('format')}, this version of midblock reads {FORMAT}")
    bos, hashed, made = (found.get(name) for name in ("bos", "weight_hash", "made"))
    return {
        "position": str(found.get("position")),
        "bos": bos if isinstance(bos, int) else None,
        "weight_hash": hashed if isinstance(hashed, str) else None,
        "made": made if isinstance(made, dict) else {},
    }
