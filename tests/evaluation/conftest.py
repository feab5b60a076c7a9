import copy
import json
from collections.abc import Callable

import pytest
import torch
from torch import nn

from midblock.data import Example, ExampleSet, Message, encode

CHAT = (
    "{% for message in messages %}<bos>{{ message['role'] }}\n{{ message['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def chatty(tokenizer):
    """The small tokenizer with a chat template whose turns end with a token of their own."""
    chatty = copy.deepcopy(tokenizer)
    chatty.add_special_tokens({"additional_special_tokens": ["<end>"]})
    chatty.chat_template = CHAT
    return chatty


@pytest.fixture(scope="session")
def answered() -> Callable[..., Example]:
    def build(prompt: str, completion: str, separator: str = "\n", **extra: str) -> Example:
        turns = (Message("user", prompt), Message("assistant", completion))
        return Example(prompt, completion, turns, separator, extra)

    return build


@pytest.fixture(scope="session")
def example_set() -> Callable[..., ExampleSet]:
    return lambda *examples: ExampleSet("made here", "", "made here", examples, "")


@pytest.fixture
def rows_file(tmp_path) -> Callable[..., str]:
    """Write rows as a dataset file."""

    def write(*rows: dict) -> str:
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture(scope="session")
def fit() -> Callable[..., None]:
    """Train a model on examples until it knows them by heart."""

    def train(model: nn.Module, tokenizer, examples: ExampleSet, template: str = "raw", steps: int = 60) -> None:
        prompts = encode(examples, tokenizer, template=template, max_length=200, add_eos=template == "raw").prompts
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=2e-2)
        for _ in range(steps):
            for prompt in prompts:
                ids = torch.tensor([prompt.input_ids])
                labels = ids.clone()
                labels[:, : prompt.answer_start] = -100
                model(input_ids=ids, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return train
