"""One small run of every verb, on pico models and sums that are written here; only doors that users have."""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from midblock.cli.main import main

PAIR = ("start", "sft")
CPU = ("--device", "cpu")
DATA = ("--data", "sums.jsonl", *CPU)
SEEN = (*DATA, "--num-samples", "12")
SMALL = ("--num-token-samples", "6", "--max-length", "48", "--subspace-rank", "8")
ANALYZE = (*SEEN, *SMALL)
WRITE = ("--generate", "--generate-samples", "6", "--max-new-tokens", "12", "--reader", "first_line")
STEER = (*DATA, "--num-samples", "6", "--num-directions-samples", "8", "--max-new-tokens", "6", "--num-texts", "2",
         "--random-draws", "2", "--alpha", "0.5", "--alpha", "1")  # fmt: skip
ERASE = ("--data", "fixed_response:builtin:chain_sum", "--other=", *CPU, "--soft-tokens", "3", "--batch-size", "2",
         "--max-steps", "4",
         "--eval-steps", "2", "--starts", "2", "--num-samples", "4", "--num-validation-samples", "2",
         "--num-test-samples", "4", "--general-samples", "2", "--last-tokens", "2", "--max-new-tokens", "3",
         "--relearn-steps", "2", "--relearn-every", "1", "--relearn-samples", "2")  # fmt: skip
STEPS = (*DATA, "--max-steps", "5", "--max-length", "48", "--learning-rate", "0.003")

STUDY = {
    "base": "start",
    "data": "sums.jsonl",
    "tune": {"max_steps": 2, "num_samples": 12, "max_length": 48, "device": "cpu", "save_steps": 0},
    "grid": {"layers": ["all", "010"], "learning_rate": [0.001, 0.01]},
    "select": "learning_rate",
    "validate": {"num_samples": 4},
    "evaluate": {"tasks": ["exact_match:later.jsonl"], "num_samples": 6, "max_new_tokens": 4, "reader": "first_line"},
}  # fmt: skip

# By the name of the folder that is left; later ones read earlier ones.
RUNS: dict[str, tuple[str, ...]] = {
    "analyze": ("analyze", *PAIR, *ANALYZE),
    "analyze-all": ("analyze", *PAIR, *ANALYZE, "--metrics", "all"),
    "analyze-weights": ("analyze", *PAIR, *CPU, "--weights-only", "--subspace-rank", "8"),
    "analyze-seeds": ("analyze", *PAIR, *DATA, "--num-samples", "8", *SMALL, "--seeds", "2", "--metrics", "p1",
                      "--no-precision-floor"),
    "analyze-adapter": ("analyze", "start", "adapter", *ANALYZE, "--region", "prompt", "--layers", "1-2"),
    "analyze-two": ("analyze", *PAIR, "adapter", *ANALYZE, "--metrics", "p1"),
    "probe": ("probe", *PAIR, *SEEN),
    "probe-generate": ("probe", *PAIR, *SEEN, *WRITE),
    "swap": ("swap", *PAIR, *SEEN, "--segments", "3"),
    "swap-generate": ("swap", *PAIR, *SEEN, *WRITE, "--segments", "each", "--cumulative", "bottom"),
    "evaluate": ("evaluate", *PAIR, "adapter", *CPU, "--tasks", "exact_match:sums.jsonl,chain_sum", "--num-samples",
                 "12", "--max-new-tokens", "4", "--target", "exact_match:sums.jsonl", "--general", "sums.jsonl",
                 "--general-samples", "6"),
    "steer": ("steer", "start", "--from", "sft", *STEER),
    "steer-pca": ("steer", "start", "--from", "sft", *STEER, "--kind", "pca", "--adding", "whole", "--no-scan"),
    "merge": ("merge", *PAIR, "--alphas", "0,0.5,1", "--module-alphas", "mlp=1"),
    "tune-lora": ("tune", "start", *STEPS),
    "tune-ranks": ("tune", "start", *STEPS, "--layers", "0,8,4", "--target-modules", "all"),
    "tune-rpsft": ("tune", "start", *STEPS, "--method", "full", "--layers", "1-2", "--also", "final_norm",
                   "--anchor", "rpsft", "--anchor-k", "8", "--anchor-lambda", "0.1"),
    "tune-kl": ("tune", "start", *STEPS, "--loss", "kl", "--layers", "010", "--gradient-accumulation-steps", "2"),
    "tune-auto": ("tune", "start", *STEPS, "--layers", "auto:analyze"),
    "flow": ("flow", "start", *STEPS),
    "flow-full": ("flow", "start", *STEPS, "--method", "full", "--layers", "2", "--loss", "dft"),
    "carve": ("carve", *PAIR, *CPU, "--data", "fixed_response:builtin:everyday", "--num-samples", "8",
              "--max-steps", "3", "--mask-warmup-steps", "1", "--learning-rate", "0.003", "--max-length", "160",
              "--test-samples", "6", "--max-new-tokens", "4", "--random-draws", "1", "--ability-samples", "4",
              "--general-samples", "4"),
    "recommend": ("recommend", "analyze", "swap", "flow", "probe", "--rank-budget", "12"),
    "recommend-repair": ("recommend", *PAIR, *DATA, "--general", "sums.jsonl", "--num-samples", "8", "--test-samples",
                         "12", "--segments", "3", "--grid", "1", "--max-length", "48"),
    "tune-recommended": ("tune", "start", *STEPS, "--layers", "auto:recommend"),
    **{f"export-{to}": ("export", "tune-ranks", "--to", to) for to in ("merged", "equal-rank", "lora-config", "trl")},
    "export-axolotl": ("export", "tune-lora", "--to", "axolotl"),  # which knows one rank only
    "erase": ("erase", "sft", "--base", "start", *ERASE),
    "study": ("study", "study.yaml", "--backend", "here", "--threads", "1"),
    "report": ("report", "swap-generate"),
    "joint": ("report", "analyze-adapter", "probe", "swap", "steer", "flow", "merge", "tune-lora"),
}  # fmt: skip


def write_pair(
    folder: Path, make: Callable[..., nn.Module], tune: Callable[..., nn.Module], tokenizer: Any, family: str = "llama"
) -> None:
    """`sums.jsonl`, `start`, `sft` tuned from it and `adapter`, all of them in closed form: nothing is trained."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"question": f"She has {n} apples, then {n % 3} more. How many?", "answer": "jxx"[n % 3]} for n in range(1, 25)
    ]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "study.yaml").write_text(json.dumps(STUDY))
    texts = [f"\n{row['answer']}" for row in rows]
    later = [{"question": f"He has {n} pears. How many?", "answer": "jxx"[n % 3]} for n in range(1, 11)]
    (folder / "later.jsonl").write_text("".join(json.dumps(row) + "\n" for row in later))
    start = make(family)
    _quieten(start)
    _know(start, tokenizer, texts, 1.0)
    sft = tune(start)
    _know(sft, tokenizer, texts, 2.0)
    for model, name in ((start, "start"), (sft, "sft")):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    if family == "llama":
        write_adapter(folder)


def _quieten(model: nn.Module) -> None:
    """Let random blocks add little, or nothing of what the embedding says is left for the head."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight *= 0.3


def _know(model: nn.Module, tokenizer: Any, texts: Iterable[str], strength: float) -> None:
    """Let the head say what follows what in the texts, so that there is something to predict; not where it is tied."""
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    if head is embedding:
        return
    ids = [[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in texts]
    pairs = Counter(pair for each in ids for pair in pairwise(each))
    total = Counter(before for each in ids for before in each[:-1])
    with torch.no_grad():
        for (before, after), count in sorted(pairs.items()):
            head[after] += strength * count / total[before] * embedding[before] / embedding[before].norm()


def write_adapter(folder: Path) -> None:
    """A PEFT adapter of two ranks, its B no longer zero."""
    model = AutoModelForCausalLM.from_pretrained(folder / "start")
    model.name_or_path = str(folder / "start")
    torch.manual_seed(2)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], rank_pattern={"layers.1.*": 6})
    adapted: Any = get_peft_model(model, settings)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.copy_(0.1 * torch.randn_like(weight))
    adapted.save_pretrained(folder / "adapter")
    file = folder / "adapter" / "adapter_config.json"  # where PEFT lists a set, in another order each time
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"target_modules": sorted(config["target_modules"])}))


def make_runs(folder: Path, runs: dict[str, tuple[str, ...]] = RUNS) -> dict[str, str]:
    """Make the runs inside the folder; of those that failed, say how."""
    failed = {}
    with _inside(folder), sketched():
        for name, arguments in runs.items():
            where = ("--output" if arguments[0] == "export" else "--output-dir", name)
            try:
                with _as_typed([*arguments, *where]) as command:
                    code = main(command)
            except Exception as error:  # the other runs are to be seen all the same
                failed[name] = f"{type(error).__name__}: {error}"
            else:
                if code != 0:
                    failed[name] = f"exit code {code}"
    return failed


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Work in the folder, with one thread: how sums are split among threads shows in the last digits."""
    before, threads = Path.cwd(), torch.get_num_threads()
    os.chdir(folder)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)


@contextmanager
def _as_typed(command: list[str]) -> Iterator[list[str]]:
    """Runs record the command line of the process; here it is pytest's."""
    before, sys.argv = sys.argv, ["midblock", *command]
    try:
        yield command
    finally:
        sys.argv = before


@contextmanager
def sketched() -> Iterator[None]:
    """Write what a figure consists of instead of drawing it: pictures take twice the time of all else together."""
    kept = {name: getattr(Figure, name) for name in ("savefig", "draw_without_rendering")}
    Figure.savefig = _sketch  # type: ignore[method-assign]
    Figure.draw_without_rendering = lambda self: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(Figure, name, method)


def _sketch(figure: Figure, file: Path, **_: object) -> None:
    lines = [f"legend: {', '.join(text.get_text() for text in each.get_texts())}" for each in figure.legends]
    for ax in figure.axes:
        titles = [ax.get_title(loc=side) for side in ("left", "center", "right")]  # type: ignore[arg-type]
        said = (*titles, ax.get_xlabel(), ax.get_ylabel(), *(text.get_text() for text in ax.texts))
        drawn = Counter(type(artist).__name__ for artist in (*ax.lines, *ax.collections, *ax.patches, *ax.images))
        lines.append(" | ".join([*filter(None, said), *(f"{count} {name}" for name, count in sorted(drawn.items()))]))
    Path(file).write_text("\n".join(" ".join(line.split()) for line in lines), encoding="utf-8")
