"""log.jsonl of runs that train."""

import json
from pathlib import Path
from typing import Any

from .kind import Kind, cases_of
from .nasty import Spoil, spoiled
from .test_run_folders import harmless


def lines(file: Path) -> Any:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def write(file: Path, whole: Any, spoil: Spoil) -> None:
    """A line for each entry; what breaks the file as a whole breaks its first line's entry."""
    if spoil.how == "file" or not spoil.where:
        file.write_bytes(spoiled(whole[0], spoil))
        return
    place, *_ = spoil.where
    texts = [json.dumps(entry).encode() for entry in whole]
    texts[int(place)] = spoiled(whole[int(place)], Spoil(spoil.how, spoil.where[1:], spoil.what))
    file.write_bytes(b"\n".join(texts) + b"\n")


def kind_of(verb: str) -> Kind:
    commands = (("report", verb, "--output-dir", "OUT"), ("report", verb, "merge", "--output-dir", "OUT"))
    needs = (verb, "merge")
    return Kind(f"log.jsonl of {verb}", f"{verb}/log.jsonl", commands, needs, 2, lines, write=write, also=harmless)


KINDS = [kind_of("tune-lora"), kind_of("flow")]

test = cases_of(KINDS)
