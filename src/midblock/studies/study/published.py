"""What P1 (arXiv 2604.11838) published, for studies whose recipe is theirs.

Read second-hand: check the paper before quoting. Their arms differ in alpha/r as well as in place, and rest on one seed
and 100 test items; docs/study.md says so beside the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

from midblock.studies.study.study_file import StudyFile

SOURCE = "P1 (arXiv 2604.11838), second-hand"
GSM8K: Mapping[str, Mapping[str, float]] = {
    "allenai/OLMo-2-0425-1B": {"11111": 0.19, "01100": 0.21},
    "allenai/OLMo-2-1124-7B": {"11111": 0.28, "01000": 0.375, "10000": 0.22, "00010": 0.27, "00001": 0.135},
    "allenai/OLMo-2-1124-13B": {"11111": 0.27, "01110": 0.30},
    "allenai/OLMo-2-0325-32B": {"11111": 0.29, "01100": 0.32},
}
DATA = ("gsm8k", "openai/gsm8k")


def published(study: StudyFile, task: str, options: Mapping[str, object]) -> float | None:
    """What P1 reports of an arm, None where the recipe is another: their model, GSM8K, LoRA on attention."""
    base, data = study.base.partition("@")[0], study.data.partition("@")[0]
    theirs = (
        data in DATA
        and task.partition(":")[0] == "gsm8k"
        and options.get("method", "lora") == "lora"
        and options.get("target_modules") in (None, "attention")
        and options.get("anchor", "none") == "none"
        and options.get("loss", "nll") == "nll"
    )
    layers = str(options.get("layers", "all"))
    return GSM8K.get(base, {}).get("11111" if layers == "all" else layers) if theirs else None
