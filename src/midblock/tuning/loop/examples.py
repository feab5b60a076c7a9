"""Examples to train on: tokens, which of them are targets, and what was cut, said before training starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from midblock.base import MidblockError, user_path
from midblock.data import ExampleSet, TokenizedPrompt, TokenizedSet, encode_renderable, make_batches
from midblock.data.batches import IGNORED
from midblock.data.derived import Derived, source_of
from midblock.data.load import FILE_ENDINGS
from midblock.evaluation import check_head
from midblock.runs.lending import evaluating
from midblock.runs.reading import load_samples
from midblock.tuning.settings import CourseSettings

SHOWN = 5
# families that look positions up in a table, which ends
LEARNED_POSITIONS = ("gpt2", "gpt_neo", "gpt_bigcode", "opt", "biogpt", "xglm")


@dataclass(frozen=True)
class TrainingExamples:
    """Tokenised examples.

    Attributes:
        prompts: one for each example, in the dataset's order.
        on_prompt: the prompt's tokens are targets too.
        facts: where they come from and how many tokens they have, for the run's record.
        notes: what a reader must know, cuts above all.
    """

    prompts: tuple[TokenizedPrompt, ...]
    on_prompt: bool
    facts: dict[str, Any]
    notes: list[str]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return [len(prompt.input_ids) for prompt in self.prompts]

    def dataset(self) -> Any:
        """As a `datasets.Dataset` with the columns `input_ids`, `labels` and `index`, all tokenised."""
        from datasets import Dataset

        return Dataset.from_dict(
            {
                "input_ids": [list(prompt.input_ids) for prompt in self.prompts],
                "labels": [self._labels(prompt) for prompt in self.prompts],
                "index": list(range(len(self.prompts))),
            }
        )

    def _labels(self, prompt: TokenizedPrompt) -> list[int]:
        start, stop = _first_target(prompt, self.on_prompt), _last_target(prompt, self.on_prompt)
        behind = len(prompt.input_ids) - stop
        return [IGNORED] * start + list(prompt.input_ids[start:stop]) + [IGNORED] * behind


def load_examples(data: str | ExampleSet, tokenizer: Any, settings: CourseSettings) -> TrainingExamples:
    """Draw and tokenise the examples.

    Raises:
        MidblockError: the data cannot be read; an example has no completion, or loses all of it at the maximum length
            (how many, and which).
    """
    data = draw_examples(data, settings)
    options = {"template": settings.template, "max_length": settings.max_length, "min_tokens": 2, "add_eos": True}
    data, tokens = encode_renderable(data, tokenizer, **options)
    if not settings.train_on_prompt:
        _refuse_without_targets(data, tokens, settings.max_length)
    prompts = tokens.prompts
    on_prompt = settings.train_on_prompt
    targets = [_last_target(p, on_prompt) - _first_target(p, on_prompt) for p in prompts]
    facts = {
        "reference": data.reference,
        "split": data.split,
        "layout": data.layout,
        "content_hash": data.content_hash,
        "template": tokens.template,
        "num_samples": len(prompts),
        "max_length": settings.max_length,
        "truncated": tokens.truncated,
        "too_short": list(tokens.too_short),
        "tokens": sum(len(p.input_ids) for p in prompts),
        "target_tokens": sum(targets),
        "longest": max(len(p.input_ids) for p in prompts),
    }
    notes = [*data.notes(), *_notes(tokens, settings)]
    return TrainingExamples(prompts=prompts, on_prompt=settings.train_on_prompt, facts=facts, notes=notes)


def draw_examples(data: str | ExampleSet, settings: CourseSettings) -> ExampleSet:
    """The examples that are trained on, before they are tokenised.

    Raises:
        MidblockError: the data cannot be read.
    """
    split = settings.split or ("train" if isinstance(data, str) and not _is_file(data) else None)
    return load_samples(data, replace(settings, split=split))


def runs_here(model: nn.Module) -> bool:
    """Whether a model can compute where its weights lie now: flash attention not before it is on its device."""
    config: Any = model.config
    flash = str(getattr(config, "_attn_implementation", "")).startswith("flash")
    return not flash or next(model.parameters()).device.type != "cpu"


def check_loss(name: str, model: nn.Module, examples: TrainingExamples) -> None:
    """Compare the logits that the loss is made of with the model's own, on the first tokens of an example.

    Raises:
        MidblockError: the model does something between its decoder and its logits that is not known.
    """
    with evaluating(model):
        check_head(name, model, make_batches(examples.prompts[:1])[0])


def check_fit(examples: TrainingExamples, config: Any) -> list[str]:
    """Hold the examples against the sizes of the model.

    Args:
        config: the model's.

    Returns:
        A note where examples are longer than what the model was made for.

    Raises:
        MidblockError: token ids that it has no embedding for, or more positions than a table of them has.
    """
    text = config.get_text_config()
    largest = max(max(prompt.input_ids) for prompt in examples.prompts)
    if largest >= text.vocab_size:
        what = f"the tokenizer gives the id {largest}, the model has {text.vocab_size} tokens"
        raise MidblockError(what, hint="the tokenizer belongs to another model")
    longest, most = examples.facts["longest"], getattr(text, "max_position_embeddings", None)
    if most is None or longest <= most:
        return []
    what = f"the longest example has {longest} tokens, the model was made for {most}"
    if text.model_type in LEARNED_POSITIONS:
        raise MidblockError(what, hint=f"--max-length {most}")
    return [f"{what[0].upper()}{what[1:]}."]


def _first_target(prompt: TokenizedPrompt, on_prompt: bool) -> int:
    """Position of the first token to be predicted; nothing predicts the very first, so it must not be counted."""
    return 1 if on_prompt else max(1, prompt.answer_start)


def _last_target(prompt: TokenizedPrompt, on_prompt: bool) -> int:
    """Position behind the last token to be predicted."""
    return len(prompt.input_ids) if on_prompt else prompt.answer_end


def _is_file(data: str) -> bool:
    """One file has no splits; anything else is trained on its `train` split, whatever it is evaluated on."""
    derived = Derived.parse(data)
    if derived is not None and derived.behaviour:
        return False  # its prompts are divided, whatever they come from
    path = user_path(source_of(data))
    return path.is_file() or path.suffix.lower() in FILE_ENDINGS


def _refuse_without_targets(data: ExampleSet, tokens: TokenizedSet, max_length: int) -> None:
    if tokens.completion_lost:
        what = (
            f"{_count(tokens.completion_lost)} of {len(tokens.prompts)} lose their whole completion at {max_length} "
            f"tokens: {_rows(tokens.completion_lost)}"
        )
        raise MidblockError(what, hint="raise --max-length, or take those rows out")
    silent = [p.index for p in tokens.prompts if p.answer_start >= len(p.input_ids)]
    if silent:
        what = f"{_count(silent)} of {len(tokens.prompts)} in {data.reference} have no completion: {_rows(silent)}"
        raise MidblockError(what, hint="--train-on-prompt trains on all of the text")


def _notes(tokens: TokenizedSet, settings: CourseSettings) -> list[str]:
    notes = []
    if tokens.truncated:
        notes.append(
            f"{tokens.truncated} of {len(tokens.prompts)} examples are longer than {settings.max_length} tokens and "
            "were cut; their end of text is not learned."
        )
    if tokens.too_short:
        notes.append(f"{_count(tokens.too_short)} left out, too short to learn from: {_rows(tokens.too_short)}.")
    return notes


def _count(indices: Sequence[int]) -> str:
    return f"{len(indices)} example" + ("s" if len(indices) != 1 else "")


def _rows(indices: Sequence[int]) -> str:
    more = ", …" if len(indices) > SHOWN else ""
    return ("rows " if len(indices) > 1 else "row ") + ", ".join(str(index) for index in indices[:SHOWN]) + more


@dataclass(frozen=True)
class Collator:
    """Stack examples into a batch, padded on the right.

    Attributes:
        pad_id: token id behind an example's end; masked, so any will do.
    """

    pad_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Int[Tensor, "..."]]:
        width = max(len(row["input_ids"]) for row in rows)

        def padded(values: list[int], fill: int) -> list[int]:
            return values + [fill] * (width - len(values))

        return {
            "input_ids": torch.tensor([padded(row["input_ids"], self.pad_id) for row in rows]),
            "attention_mask": torch.tensor([padded([1] * len(row["input_ids"]), 0) for row in rows]),
            "labels": torch.tensor([padded(row["labels"], IGNORED) for row in rows]),
            "index": torch.tensor([row["index"] for row in rows]),
        }
