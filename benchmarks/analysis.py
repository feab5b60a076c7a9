"""What an analysis costs beyond the two models' bare forward passes, and how much memory it takes.

P1's sampling and metric set: 200 pooled and 50 token-level prompts of 128 tokens, intervals, nulls and weight norms
included. The bare passes run over the very same batches, before and after, in the same process.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.partner import BASE, make_partner
from midblock import analyze, load_pair
from midblock.analysis.prompts import prepare_prompts
from midblock.analysis.settings import AnalysisSettings
from midblock.checkpoints import Anatomy, Pair
from midblock.data import Batch
from midblock.report import write_report
from midblock.runs.surroundings import peak_memory
from midblock.trace import run_backbone


def bare_forwards(pair: Pair, batches: Sequence[Batch]) -> float:
    """Seconds for all models' backbones over all batches, and nothing else."""
    anatomies = [Anatomy.of(variant.model) for variant in pair]
    start = time.perf_counter()
    for batch in batches:
        for anatomy in anatomies:
            run_backbone(anatomy, batch.input_ids)
    return time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Print the ratios of one run and return them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="builtin:gsm_symbolic")
    parser.add_argument("--tuned", default=None, help="model folder; a perturbed copy of the base when left out")
    parser.add_argument("--metrics", default="p1")
    parser.add_argument("--tokens", default="all,no-sinks")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-tokens", type=int, default=1024)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        tuned = options.tuned or str(make_partner(Path(scratch) / "partner"))
        found = measure(tuned, options, Path(scratch) / "run")
    print(json.dumps(found, indent=2))
    return found


def measure(tuned: str, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    asked = {"metrics": options.metrics, "batch_tokens": options.batch_tokens, "tokens": options.tokens}
    pair = load_pair(BASE, tuned, device=options.device, dtype=options.dtype)
    weights = sum(p.numel() * p.element_size() for variant in pair for p in variant.model.parameters())
    prompts = prepare_prompts(pair, options.data, AnalysisSettings(**asked), views=False)
    batches = [*prompts.deep, *prompts.pooled]
    bare_forwards(pair, batches[:2])
    before = bare_forwards(pair, batches)
    start = time.perf_counter()
    analyze(pair, options.data, output_dir=folder, **asked)
    wall = time.perf_counter() - start
    start = time.perf_counter()
    peak = peak_memory()
    write_report(folder)
    report = time.perf_counter() - start
    after = bare_forwards(pair, batches)
    bare = (before + after) / 2
    return {
        "threads": torch.get_num_threads(),
        "tokens": prompts.facts["tokens"],
        "bare_before_s": round(before, 2),
        "bare_after_s": round(after, 2),
        "analyze_s": round(wall, 2),
        "ratio": round(wall / bare, 3),
        "report_s": round(report, 2),
        "weights_gb": round(weights / 2**30, 3),
        "peak_gb": round(peak / 2**30, 3),
        "peak_over_weights_gb": round((peak - weights) / 2**30, 3),
        "folder_mb": round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20, 2),
        **{
            f"phase_{name}_s": phase["seconds"]
            for name, phase in json.loads((folder / "run.json").read_text())["phases"].items()
        },
    }


if __name__ == "__main__":
    main()
