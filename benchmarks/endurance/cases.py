"""CASES: every verb as it is run here, small, and how it is asked to go on after a kill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.endurance.world import SFT, START, SUMS

RESUME, OVERWRITE = ("--resume",), ("--overwrite",)
RUN = "run"  # the folder that every command fills, in a place of its own
ANALYSIS, TUNING = "analysis", "tuning"


@dataclass(frozen=True)
class Case:
    """A command.

    Attributes:
        words: its words; `@NAME` is a file of the world, absolute.
        into: the words that say where it writes.
        again: what is added to go on after a kill, tried in this order; the command alone is ().
        steps: lines that `log.jsonl` has when it is whole, 0 where there is none.
        made: the file whose last renaming says that this process filled the folder.
        finds: a run of the world that lies in its place already, under the name RUN.
        whole: one more flag that replaces what stands, () where a second run does so by itself.
    """

    words: tuple[str, ...]
    into: tuple[str, ...] = ("--output-dir", RUN)
    again: tuple[tuple[str, ...], ...] = (RESUME,)
    steps: int = 0
    made: str = "layers.parquet"
    finds: str = ""
    whole: tuple[str, ...] = OVERWRITE

    @property
    def verb(self) -> str:
        return self.words[0]

    @property
    def resumes(self) -> bool:
        return self.again == (RESUME,)


CPU = ("--device", "cpu")
DATA = ("--data", f"@{SUMS}", *CPU)
PAIR = (f"@{START}", f"@{SFT}")
FEW = (*DATA, "--num-samples", "6")
SMALL = ("--num-token-samples", "3", "--max-length", "40", "--subspace-rank", "4")
STEPS = ("--max-length", "40", "--learning-rate", "0.003", "--per-device-train-batch-size", "2")
TUNE = ("tune", f"@{START}", *DATA, *STEPS)
SIX = ("--max-steps", "6", "--save-steps", "2")
ANEW = ((), OVERWRITE)  # what cannot be resumed is run again, and only what stands already is replaced


def _export(*words: str, output: str = RUN) -> Case:
    return Case(("export", f"@{TUNING}", *words), into=("--output", output), again=ANEW, made=output)


ANALYZE = ("analyze", *PAIR, *FEW, *SMALL, "--metrics", "p1")
LORA = (*TUNE, *SIX)

CASES: Mapping[str, Case] = {
    "analyze": Case(ANALYZE),
    "probe": Case(("probe", *PAIR, *FEW)),
    "swap": Case(("swap", *PAIR, *FEW, "--segments", "3")),
    "steer": Case(
        ("steer", f"@{START}", "--from", f"@{SFT}", *DATA, "--num-samples", "4", "--num-directions-samples", "6",
         "--max-new-tokens", "4", "--num-texts", "2", "--random-draws", "1", "--alpha", "1")
    ),
    "merge": Case(("merge", *PAIR, "--alphas", "0,0.5,1"), again=ANEW, made=RUN),
    "tune, LoRA": Case(LORA, steps=6),
    "tune, all weights": Case((*TUNE, *SIX, "--method", "full"), steps=6),
    "tune, prefix cached": Case(
        (*TUNE, "--layers", "001", "--prefix-cache", "on", "--num-train-epochs", "1.5", "--save-steps", "2"), steps=9
    ),
    "flow": Case(("flow", f"@{START}", *DATA, *STEPS, "--max-steps", "4"), steps=4),
    "export, merged": _export(),
    "export, equal rank": _export("--to", "equal-rank"),
    "export, a script": _export("--to", "trl", output=f"{RUN}.py"),
    "report": Case(("report", RUN), into=(), again=((),), made="report.html", finds=ANALYSIS, whole=()),
    "report, joint": Case(
        ("report", f"@{ANALYSIS}", f"@{TUNING}"), again=((),), made="report.html", whole=()
    ),
    "demo": Case(("demo", "--num-samples", "4", *CPU), again=((),), steps=6),
}  # fmt: skip

# What the world holds besides models and data: runs that others read.
GROUND = {ANALYSIS: ANALYZE, TUNING: LORA}
