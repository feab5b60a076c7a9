"""run.json, summary.json and what else lies in a run folder beside the table, read by pages and by later verbs."""

from pathlib import Path

from .kind import Kind, cases_of
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


def kind_of(verb: str, file: str, cases: int) -> Kind:
    other = "flow" if verb == "merge" else "merge"
    commands = (
        ("report", verb, "--output-dir", "OUT"),
        ("report", verb, other, "--output-dir", "OUT"),
        ("report", other, verb, "--output-dir", "OUT"),
        *READERS.get(verb, ()),
    )
    needs = (verb, other, "start", "sft", "adapter", "sums.jsonl")
    return Kind(f"{file} of {verb}", f"{verb}/{file}", commands, needs, cases, also=harmless)


def read_back(verb: str, file: str, cases: int) -> Kind:
    """A finished run that is told again: the folder is both read and written."""
    command = (*RUNS[verb], "--resume", "-o", verb)
    return Kind(
        f"{file} of a finished {verb}", f"{verb}/{file}", [command], (verb, "start", "sft", "sums.jsonl"), cases,
        also=harmless, out=verb,
    )  # fmt: skip


KINDS = [
    *(kind_of(verb, file, 5) for verb in VERBS for file in ("run.json", "summary.json")),
    kind_of("tune-lora", "plan.json", 8),
    kind_of("analysis", "samples.json", 4),
    *(read_back(verb, "summary.json", 4) for verb in VERBS if verb != "merge"),
    *(read_back(verb, "run.json", 3) for verb in VERBS if verb != "merge"),
    read_back("steer", "texts.json", 6),
]

test = cases_of(KINDS)
