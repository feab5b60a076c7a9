"""Batched evaluation against asking one prompt at a time, side by side on the same items, and what the verb adds.

All three write greedily with transformers' `generate` until the model stops: `one by one` a prompt at a time, `batched`
as tasks do it (batches by length, padded on the left), `evaluate` the whole verb around it, tables and folder included.
Its limit: batched at least 4 times as fast as one by one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.partner import BASE
from midblock import evaluate, load_models
from midblock.base import Silent
from midblock.evaluation import Scored, Subject, TaskSettings, open_task


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=BASE)
    parser.add_argument("--task", default="chain_sum")
    parser.add_argument("--num-samples", type=int, default=96)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args(arguments)
    pair = load_models(options.model)
    subject = Subject("base", pair.base.model, pair.tokenizer)
    task = open_task(options.task, options.num_samples)
    limits = {"max_new_tokens": options.max_new_tokens}
    batched = TaskSettings(batch_tokens=options.batch_tokens, **limits)

    answers: dict[int, list[Scored]] = {}

    def ask(settings: TaskSettings) -> None:
        answers[settings.batch_tokens] = list(task.run(subject, task.items, settings, Silent()))

    def whole() -> None:
        with tempfile.TemporaryDirectory() as scratch:
            evaluate(
                pair, options.task, num_samples=options.num_samples, batch_tokens=options.batch_tokens,
                output_dir=Path(scratch) / "run", overwrite=True, **limits,
            )  # fmt: skip
        pair.base.loaded = subject.model

    single = TaskSettings(batch_tokens=1, **limits)
    list(task.run(subject, task.items[:2], batched, Silent()))  # warms up
    rounds = [[timed(lambda: ask(single)), timed(lambda: ask(batched)), timed(whole)] for _ in range(options.repeats)]
    alone, together, verb = (min(column) for column in zip(*rounds, strict=True))
    found = {
        "items": len(task.items),
        "same_outputs": answers[1] == answers[options.batch_tokens],
        "one_by_one_s": round(alone, 2),
        "batched_s": round(together, 2),
        "evaluate_s": round(verb, 2),
        "times_faster": round(alone / together, 2),
        "evaluate_over_batched": round(verb / together, 3),
    }
    print(json.dumps(found, indent=2))
    return found


if __name__ == "__main__":
    main()
