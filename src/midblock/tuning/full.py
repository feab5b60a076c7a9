"""Full-parameter supervised fine-tuning on completions, by transformers' Trainer; the demo's tuned partner."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from midblock.base import MidblockError, Progress, Silent, write_json
from midblock.base.files import write_failure
from midblock.checkpoints import Checkpoint, LoadSettings, load_model, quiet_transformers
from midblock.data import ExampleSet, TokenizedPrompt, encode, make_batches


@dataclass(frozen=True, kw_only=True)
class FullTuning:
    """A short full-parameter SFT, named as transformers' TrainingArguments name it."""

    max_steps: int = 40
    """Optimizer steps."""

    per_device_train_batch_size: int = 4
    """Examples a step."""

    learning_rate: float = 2e-5
    """Peak learning rate of AdamW, after 10 % warm-up, falling linearly to zero."""

    max_length: int = 160
    """Tokens an example is cut at."""

    seed: int = 0
    """Decides the order of examples."""

    device: str = "auto"
    """`cpu`, `cuda`, …; `auto` takes the accelerator if there is one."""


def tune_fully(
    checkpoint: Checkpoint,
    data: ExampleSet,
    folder: Path,
    settings: FullTuning,
    progress: Progress | None = None,
) -> list[float]:
    """Train all weights on the completions of `data` and save the model to `folder`.

    The folder appears only when the model in it is whole. Training runs in float32: at these learning rates bfloat16
    weights would not move.

    Returns:
        The loss of each step: mean negative log-likelihood per completion token, nats.

    Raises:
        MidblockError: nothing to learn from is left after cutting, the loss is no longer a number, or the disk
            is full.
    """
    from transformers import Trainer, TrainingArguments

    tokenizer = checkpoint.tokenizer()
    tokens = encode(data, tokenizer, max_length=settings.max_length, add_eos=True)
    prompts = [prompt for prompt in tokens.prompts if prompt.answer_start < len(prompt.input_ids)]
    if not prompts:
        raise MidblockError(f"no completion of {data.reference} fits in {settings.max_length} tokens")
    model = load_model(checkpoint, LoadSettings(dtype="float32", device=settings.device)).requires_grad_(True)
    advance = (progress or Silent()).phase(f"tuning all weights for {settings.max_steps} steps", settings.max_steps)
    watcher = _watcher(advance)
    with tempfile.TemporaryDirectory() as scratch, quiet_transformers():
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=settings.max_steps,
            per_device_train_batch_size=settings.per_device_train_batch_size,
            learning_rate=settings.learning_rate,
            warmup_steps=max(1, settings.max_steps // 10),
            seed=settings.seed,
            logging_steps=1,
            logging_nan_inf_filter=False,  # else a loss that is no number is logged as the mean of those before
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            use_cpu=settings.device == "cpu",
        )
        # one device, as elsewhere: beyond one GPU the Trainer would use DataParallel and multiply the batch, unasked
        arguments._n_gpu = min(arguments.n_gpu, 1)
        trainer = Trainer(model, arguments, train_dataset=prompts, data_collator=_collate, callbacks=[watcher])
        _without_printing(trainer)
        trainer.train()
        try:
            _save(model, tokenizer, folder, settings, data, watcher.losses)
        except (OSError, SafetensorError) as error:
            raise write_failure(folder, error) from error
    return watcher.losses


def _collate(prompts: Sequence[TokenizedPrompt]) -> dict[str, Tensor]:
    widest = max(len(prompt.input_ids) for prompt in prompts)
    batch = make_batches(prompts, batch_tokens=widest * len(prompts))[0]
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask.long(), "labels": batch.labels()}


def _watcher(advance: Any) -> Any:
    """A callback that collects the losses, moves the progress bar, and stops on a loss that is no number."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def __init__(self) -> None:
            self.losses: list[float] = []

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **rest: Any
        ) -> None:
            if logs and "loss" in logs:
                if not math.isfinite(logs["loss"]):
                    raise MidblockError(
                        f"the loss is {logs['loss']} at step {state.global_step}", hint="lower the learning rate"
                    )
                self.losses.append(float(logs["loss"]))
                advance(1)

    return Watcher()


def _without_printing(trainer: Any) -> None:
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def _save(
    model: Any, tokenizer: Any, folder: Path, settings: FullTuning, data: ExampleSet, losses: list[float]
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        made = Path(scratch) / folder.name
        model.to(torch.device("cpu")).save_pretrained(made)
        tokenizer.save_pretrained(made)
        facts = {"data": data.reference, "split": data.split, "content_hash": data.content_hash}
        write_json(made / "tuning.json", {**asdict(settings), **facts, "losses": losses})
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)
