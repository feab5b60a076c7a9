"""log.jsonl of runs that train."""

import json
from pathlib import Path
from typing import Any

import pytest

from .kind import Kind, everything_about
from .nasty import Spoil, spoiled
from .test_run_folders import harmless
from .world import World


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


@pytest.mark.parametrize("verb", ["tune-lora", "flow"])
def test_of(world: World, verb: str) -> None:
    commands = (("report", verb, "--output-dir", "OUT"), ("report", verb, "analyze", "--output-dir", "OUT"))
    everything_about(Kind(f"log.jsonl of {verb}", f"{verb}/log.jsonl", commands, (verb, "analyze"), 20, lines, write=write, also=harmless))(world)
