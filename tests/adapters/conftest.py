"""A pico base and adapters on it, as PEFT saves them, with the model that PEFT makes of both unmerged."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

IDS = torch.arange(3, 27)[None] * 11 % 300


@dataclass(frozen=True)
class Adapted:
    """A base and an adapter on disk.

    Attributes:
        logits: of PEFT's unmerged model, on `IDS`.
    """

    base: Path
    adapter: Path
    logits: Tensor

    @property
    def file(self) -> Path:
        return self.adapter / "adapter_model.safetensors"

    def rewrite(self, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
        """Pass the adapter's tensors through a function."""
        tensors = {name: value.clone() for name, value in load_file(self.file).items()}
        save_file(change(tensors), self.file, metadata={"format": "pt"})

    def rename(self, change: Callable[[str], str]) -> None:
        self.rewrite(lambda tensors: {change(name): value for name, value in tensors.items()})

    def configure(self, **changes: Any) -> None:
        file = self.adapter / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture
def adapt(tmp_path: Path, pico: Any, tokenizer: Any) -> Callable[..., Adapted]:
    def make(family: str = "llama", config: Any = None, model: Any = None, **options: Any) -> Adapted:
        base, adapter = tmp_path / "base", tmp_path / "adapter"
        (model or pico(family)).save_pretrained(base)
        tokenizer.save_pretrained(base)
        given = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], **options}
        start: Any = AutoModelForCausalLM.from_pretrained(base)
        adapted: Any = get_peft_model(start, config or LoraConfig(task_type="CAUSAL_LM", **given))
        stream = torch.Generator().manual_seed(7)
        for value in adapted.parameters():
            if value.requires_grad:
                value.data.add_(0.1 * torch.randn(value.shape, generator=stream))
        adapted.eval().save_pretrained(adapter)
        with torch.no_grad():
            logits = None if config is not None else adapted(input_ids=IDS).logits
        return Adapted(base, adapter, logits if logits is not None else torch.empty(0))

    return make
