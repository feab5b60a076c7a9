"""Probe and swap against the bare forward passes that they stand for, alternating in one process.

A cell of the swap table is held against one whole forward pass: backbone, and head on the answer tokens, no metrics.
A probe is held against one backbone pass and L heads on the same answer tokens. Both of ours are timed whole: tokens
made, every metric, intervals and the finished table.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.partner import BASE, make_partner
from midblock import load_dataset, load_models, load_pair, probe, swap
from midblock.checkpoints import Anatomy
from midblock.interventions.answering import AnsweringSettings, Answers, read_answers

DATA = "builtin:gsm_symbolic"
SEGMENTS = 5


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def heads(anatomy: Anatomy, answers: Answers, each: int) -> None:
    """A backbone pass over all batches, and `each` heads on the answer tokens of its output."""
    with torch.inference_mode():
        for batch, targets in zip(answers.batches, answers.targets, strict=True):
            states = targets.pick(anatomy.backbone(input_ids=batch.input_ids, use_cache=False)[0])
            for _ in range(each):
                anatomy.logits(anatomy.final_norm(states))


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-samples", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args(arguments)
    examples = load_dataset(DATA, split="test", num_samples=options.num_samples)
    with tempfile.TemporaryDirectory() as scratch:
        pair = load_pair(BASE, str(make_partner(Path(scratch) / "partner")))
        alone, anatomy = load_models(BASE), Anatomy.of(pair.base.model)
        answers = read_answers(pair, examples, AnsweringSettings())
        alone.base.loaded = pair.base.model
        table = swap(pair, examples, segments=str(SEGMENTS))  # warms up what the first round would pay for
        rounds = []
        for _ in range(options.repeats):
            rounds.append(
                [
                    timed(lambda: swap(pair, examples, segments=str(SEGMENTS))),
                    timed(lambda: heads(anatomy, answers, 1)),
                    timed(lambda: probe(alone, examples)),
                    timed(lambda: heads(anatomy, answers, len(anatomy))),
                ]
            )
        swapping, forward, probing, reading = (min(column) for column in zip(*rounds, strict=True))
    cells = int(table.frame.metric.isin(["swap_nll", "swap_nll.reference"]).sum())
    found = {
        "tokens": sum(batch.input_ids.numel() for batch in answers.batches),
        "answer_tokens": sum(len(targets.tokens) for targets in answers.targets),
        "swap_cells": cells,
        "swap_s": round(swapping, 2),
        "forward_s": round(forward, 2),
        "swap_per_cell_over_forward": round(swapping / cells / forward, 3),
        "probe_s": round(probing, 2),
        "backbone_and_heads_s": round(reading, 2),
        "probe_over_backbone_and_heads": round(probing / reading, 3),
    }
    print(json.dumps(found, indent=2))
    return found


if __name__ == "__main__":
    main()
