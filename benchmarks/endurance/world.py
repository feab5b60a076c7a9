"""A small world to kill runs in: a pico base, a model tuned from it, sums to read, and what later verbs go on from."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

START, SFT, SUMS = "start", "sft", "sums.jsonl"
VOCABULARY, WIDTH, BLOCKS, ROWS = 300, 32, 3, 12
SPECIAL = ("<pad>", "<bos>", "<eos>")


def write_world(folder: Path) -> None:
    """Write models and data."""
    folder.mkdir(parents=True)
    rows = [{"question": f"She has {n} apples, then {n % 3} more. How many?", "answer": str(n)} for n in range(ROWS)]
    (folder / SUMS).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tokenizer, start = _tokenizer(row["question"] for row in rows), _model()
    for model, name in ((start, START), (_moved(start), SFT)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def _model() -> Any:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:  # the usual initialisation is so small that every layer looks alike
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return model


def _moved(model: nn.Module) -> Any:
    torch.manual_seed(1)
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return tuned


def _tokenizer(texts: Any) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    pad, _, end = SPECIAL
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, eos_token=end)
