"""run.json, summary.json and what else lies in a run folder beside the table, read by pages and by later verbs."""

from collections.abc import Sequence
from pathlib import Path

from .kind import MANY, Kind, cases_of
from .nasty import Spoil
from .world import RUNS

CPU = ("--device", "cpu")
LARGEST = 4 * 2**20  # bytes of a page about a pico run


def harmless(folder: Path, spoil: Spoil) -> str:
    """A page is of a bounded size, and no text of a file became a part of it."""
    page = folder / "report.html"
    if not page.exists():
        return ""
    text = page.read_text(encoding="utf-8")
    if len(text) > LARGEST:
        return f"a page of {len(text):,} letters"
    return "text became a part of the page" if "<script>window.hacked" in text or "<img src=x" in text else ""


VERBS = ("analysis", "probe", "swap", "steer", "merge", "tune-lora", "flow")
READERS = {
    "analysis": (
        ("tune", "start", "--data", "sums.jsonl", "--layers", "auto:analysis", "--max-steps", "1", *CPU, "-o", "OUT"),
        ("steer", "start", "--from", "analysis", "--data", "sums.jsonl", "--num-samples", "4",
         "--num-directions-samples", "4", "--max-new-tokens", "2", "--no-scan", "--random-draws", "1", *CPU, "-o",
         "OUT"),
    ),
    "steer": (
        ("steer", "start", "--from", "steer", "--data", "sums.jsonl", "--num-samples", "4", "--max-new-tokens", "2",
         "--no-scan", "--random-draws", "1", *CPU, "-o", "OUT"),
    ),
    "tune-lora": (
        ("export", "tune-lora", "--to", "axolotl", "--output", "OUT"),
        ("export", "tune-lora", "--to", "trl", "--output", "OUT"),
        ("analyze", "start", "tune-lora", "--weights-only", *CPU, "-o", "OUT"),
    ),
}  # fmt: skip


FAILED = (
    (0, Spoil("set", ("models", 0, "weight_hash"), "a lone surrogate")),
    (1, Spoil("set", ("seed",), "100,000 brackets")),
)
FAILED_BACK = (
    (0, Spoil("repeat", ("models", 0, "representation_depth", "peak_block"), "null")),
    (0, Spoil("set", ("models", 0), "100,000 braces")),
)
FAILED_STEER = (
    (0, Spoil("set", ("tuned_nll",), "10^12")),
    (0, Spoil("set", ("alphas", 1, "change", "low"), "a mapping in a mapping")),
    (0, Spoil("drop", ("alphas", 0, "change"))),
)
FAILED_SWAP = (
    (0, Spoil("set", ("cells", 12, "head"), "control characters")),
    (0, Spoil("set", ("cells", 0, "blocks"), "control characters")),
)
FAILED_TEXTS = ((0, Spoil("rename", (0, "steered", "0.5"), "control characters")),)


def kind_of(verb: str, file: str, cases: int, kept: Sequence[tuple[int, Spoil]] = ()) -> Kind:
    other = "flow" if verb == "merge" else "merge"
    alone, joint, turned = (
        ("report", *runs, "--output-dir", "OUT") for runs in ((verb,), (verb, other), (other, verb))
    )
    # a joint page takes several times as long; where reading ends, all verbs go the same way
    pages = [alone, *([joint] if MANY or verb in ("analysis", "swap") else [])]
    commands = (*pages, *READERS.get(verb, ()), *([turned] if MANY else []))
    needs = (verb, other, "start", "sft", "adapter", "sums.jsonl")
    return Kind(f"{file} of {verb}", f"{verb}/{file}", commands, needs, cases, also=harmless, kept=kept)


def read_back(verb: str, file: str, cases: int, kept: Sequence[tuple[int, Spoil]] = ()) -> Kind:
    """A finished run that is told again: the folder is both read and written."""
    command = (*RUNS[verb], "--resume", "-o", verb)
    needs = (verb, "start", "sft", "adapter", "sums.jsonl")
    return Kind(
        f"{file} of a finished {verb}", f"{verb}/{file}", [command], needs, cases,
        also=harmless, out=verb, kept=kept,
    )  # fmt: skip


KINDS = [
    kind_of("swap", "run.json", 3, FAILED),
    *(kind_of(verb, "run.json", 3) for verb in VERBS if verb != "swap"),
    *(kind_of(verb, "summary.json", 3) for verb in VERBS),
    kind_of("tune-lora", "plan.json", 6),
    kind_of("analysis", "samples.json", 3),
    read_back("analysis", "summary.json", 3, FAILED_BACK),
    read_back("steer", "summary.json", 3, FAILED_STEER),
    read_back("swap", "summary.json", 2, FAILED_SWAP),
    *(read_back(verb, "summary.json", 2) for verb in ("probe", "merge", "tune-lora", "flow")),
    *(read_back(verb, "run.json", 2) for verb in (VERBS if MANY else ("analysis", "tune-lora"))),
    read_back("steer", "texts.json", 4, FAILED_TEXTS),
    kind_of("evaluate", "summary.json", 6),
    read_back("evaluate", "summary.json", 3),
]

test = cases_of(KINDS)
