"""How a tuning run was made: what every run tells, and the anchor and every trained tensor."""

from __future__ import annotations

from midblock.report.page.provenance import facts, grid, provenance_of
from midblock.report.read.tuning import TuneRun
from midblock.report.tune.plan import targets_of
from midblock.runs.lenient import mapping

DATA_FACTS = {
    "reference": "Reference", "split": "Split", "layout": "Layout", "content_hash": "Content hash",
    "num_samples": "Examples", "max_length": "Longest, tokens", "truncated": "Cut at the longest",
    "completion_lost": "Completion lost by the cut", "tokens": "Tokens", "target_tokens": "Tokens trained on",
}  # fmt: skip
PLAN_FACTS = {
    "method": "Method", "layers": "Blocks", "total_blocks": "Blocks of the model", "loss": "Loss",
    "trained_parameters": "Trained parameters", "total_parameters": "Parameters",
}  # fmt: skip
ANCHOR_FACTS = {
    "k": "k", "lambda": "λ", "scope": "Scope", "normalize": "Normalised", "weights": "Weights held",
}  # fmt: skip
TARGET_FACTS = ("name", "role", "block", "shape", "rank", "alpha", "scale", "parameters")
MOST = 600


def tune_provenance(run: TuneRun) -> str:
    """HTML of the last section."""
    anchor = mapping(run.plan, "anchor")
    details = facts(
        "Plan", {title: run.plan[key] for key, title in PLAN_FACTS.items() if run.plan.get(key) is not None}
    )
    details += facts(
        "Anchor", {title: anchor[key] for key, title in ANCHOR_FACTS.items() if anchor.get(key) is not None}
    )
    return provenance_of(run, DATA_FACTS, details + _full_rank(anchor.get("full_rank")) + _targets(run))


def _full_rank(names: object) -> str:
    """The tensors on which the anchor is a plain L2 one, because k reaches their rank."""
    if not isinstance(names, list) or not names:
        return ""
    return _folded("Weights whose k reaches their full rank", grid(("name",), ([name] for name in names)))


def _targets(run: TuneRun) -> str:
    targets = targets_of(run)
    if not targets:
        return ""
    head = [key for key in TARGET_FACTS if any(target.get(key) is not None for target in targets)]
    rows = [["–" if target.get(key) is None else _said(target[key]) for key in head] for target in targets[:MOST]]
    more = f"<p>{len(targets) - MOST} more in <code>plan.json</code>.</p>" if len(targets) > MOST else ""
    return _folded(f"Trained tensors ({len(targets)})", grid(head, rows) + more)


def _said(value: object) -> object:
    return " × ".join(map(str, value)) if isinstance(value, list) else value


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>{body}</details>"
