"""The model card beside what a run wrote: how it was made, in the hub's format."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from midblock.base.plural import blocks_named
from midblock.base.quoting import markdown_code, markdown_text, without_places
from midblock.base.yaml_text import yaml_text
from midblock.checkpoints import Checkpoint
from midblock.runs.surroundings import RECORDED_PACKAGES
from midblock.tuning.losses import loss_of
from midblock.tuning.place.methods import method_of
from midblock.tuning.settings import CourseSettings

PAPERS = {
    "layers": ("A Layer-wise Analysis of Supervised Fine-Tuning", "2604.11838"),
    "rpsft": ("Rotation-Preserving Supervised Fine-Tuning", "2605.10973"),
    "dft": (
        "On the Generalization of SFT: A Reinforcement Learning Perspective with Reward Rectification",
        "2508.05629",
    ),
    "eaft": ("Entropy-Adaptive Fine-Tuning: Resolving Confident Conflicts to Mitigate Forgetting", "2601.02151"),
    "stm": ("Mitigating Forgetting in LLM Fine-Tuning via Low-Perplexity Token Learning", "2501.14315"),
    "lcdd": ("Crafting Reversible SFT Behaviors in Large Language Models", "2605.06632"),
    "lora": ("LoRA: Low-Rank Adaptation of Large Language Models", "2106.09685"),
}


def model_card(
    settings: CourseSettings,
    base: Checkpoint,
    record: Mapping[str, Any],
    plan: Mapping[str, Any],
    command: str | None,
) -> str:
    """Write the card; it may be uploaded, so that it holds no folder of this machine.

    Args:
        record: `run.json`: versions, data, models.
        plan: `plan.json`.
    """
    data, method = record["data"], method_of(settings)
    # the hub refuses a card whose base is not one of its own models
    header: dict[str, Any] = {"base_model": base.reference.location} if base.reference.kind == "hub" else {}
    header |= {
        "library_name": method.library,
        "pipeline_tag": "text-generation",
        "tags": ["midblock", "sft", *method.tags],
    }
    facts = {
        "Blocks tuned": f"{plan['layers']} of {plan['total_blocks']}",
        "Method": _method(settings, plan),
        "Trained parameters": f"{plan['trained_parameters']:,} of {plan['total_parameters']:,}",
        "By part": ", ".join(f"{part} {count:,}" for part, count in plan["by_part"].items()),
        "Loss": settings.loss + (" over prompt and completion" if settings.train_on_prompt else " over completions"),
        "Held on to": _anchor(settings),
        "Data": f"{without_places(data['reference'])}, split {data['split'] or '–'}, {data['num_samples']} examples, "
        f"{data['target_tokens']:,} target tokens (SHA-256 {data['content_hash'][:16]}…)",
        "Seed": str(settings.seed),
        "Base": f"{without_places(base.reference.text)}, weights SHA-256 {record['models'][0]['weight_hash'][:16]}…",
        "Versions": ", ".join(f"{name} {record['versions'].get(name)}" for name in RECORDED_PACKAGES),
    }
    lines = ["---", yaml_text(header).strip(), "---", "", f"# {markdown_text(_title(base, plan))}", ""]
    lines += ["| | |", "| --- | --- |", *(f"| {key} | {markdown_text(value)} |" for key, value in facts.items()), ""]
    if command:
        lines += [markdown_code(command_without_places(command)), ""]
    lines += ["## Sources", ""]
    lines += [f"- {title}, [arXiv {number}](https://arxiv.org/abs/{number})" for title, number in _papers(settings)]
    return "\n".join(lines) + "\n"


def command_without_places(command: str) -> str:
    """A command line whose paths are reduced to names; one that no shell reads is left out."""
    try:
        words = shlex.split(command)
    except ValueError:
        return "midblock"
    return shlex.join(map(without_places, words))


def _title(base: Checkpoint, plan: Mapping[str, Any]) -> str:
    return f"{base.name}, {blocks_named(plan['layers'])} tuned with midblock"


def _method(settings: CourseSettings, plan: Mapping[str, Any]) -> str:
    ranked = [target for target in plan["targets"] if target["rank"] is not None]
    if not ranked:
        return f"{settings.method}: {method_of(settings).on_card}"
    ranks = sorted({target["rank"] for target in ranked})
    scales = sorted({round(target["scale"], 6) for target in ranked})
    kind = "DoRA" if settings.use_dora else method_of(settings).title
    return f"{kind}, rank {_span(ranks)}, scale {_span(scales)}"


def _span(values: list[Any]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _anchor(settings: CourseSettings) -> str:
    if settings.anchor == "none":
        return "nothing"
    return f"{settings.anchor}: k {settings.anchor_k}, λ {settings.anchor_lambda:g}, scope {settings.anchor_scope}"


def _papers(settings: CourseSettings) -> list[tuple[str, str]]:
    names = ["layers", *method_of(settings).papers]
    names += [name for name in ("rpsft",) if settings.anchor == name]
    names += loss_of(settings).papers
    return [PAPERS[name] for name in names]
