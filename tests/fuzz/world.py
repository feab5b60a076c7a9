"""Pico models and a run of each verb, made when they are first asked for, and copies of them to be spoiled."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..pins.verbs import RUNS as PINNED
from ..pins.verbs import make_runs, write_pair

RUNS = {
    **PINNED,
    "analysis": ("analyze", "start", "sft", "--data", "sums.jsonl", "--num-samples", "6", "--num-token-samples", "4",
                 "--metrics", "change_own,change_increment,cka_debiased", "--no-precision-floor",
                 "--subspace-rank", "4", "--device", "cpu"),
}  # fmt: skip

SETTINGS = {
    "base": "start", "tuned": ["sft"], "data": "sums.jsonl", "num_samples": 4, "num_token_samples": 4, "seeds": 1,
    "max_length": 48, "template": "raw", "region": "all", "metrics": "change_own,change_increment", "layers": "all",
    "batch_tokens": 1024, "lens_positions": 4, "token_dropout": 0.1, "subspace_rank": 4, "precision_floor": False,
    "exact_spectra": False, "weights": True, "weights_only": False, "seed": 0, "dtype": "float32", "device": "cpu",
    "device_map": None, "attn_implementation": None, "allow_pickle": False, "trust_remote_code": False,
    "output_dir": "out", "resume": False, "overwrite": False, "json": False, "split": None,
}  # fmt: skip
Seen = dict[str, tuple[int, int, int]]


@dataclass
class World:
    """What a user might have.

    Attributes:
        whole: never spoiled; `start`, `sft`, `adapter`, `sums.jsonl` and the runs of `tests/pins`, by their names.
        case: copies of what a kind needs.
        make: writes the models and the data.
        made: the runs that are there already.
        laid: what the copies looked like when they were made.
        known: what commands leave of whole input.
    """

    whole: Path
    case: Path
    make: Callable[[Path], None]
    made: set[str] = field(default_factory=set)
    laid: dict[str, Seen] = field(default_factory=dict)
    known: dict[Any, Any] = field(default_factory=dict)

    @classmethod
    def at(cls, folder: Path, pico: Any, tuned_from: Any, tokenizer: Any) -> World:
        return cls(folder / "whole", folder / "case", lambda at: write_pair(at, pico, tuned_from, tokenizer))

    def need(self, *names: str) -> None:
        """Make what is not there yet, and lay a fresh copy of it in the case's folder.

        Args:
            names: of files and folders of `write_pair`, or of `RUNS`.
        """
        if not self.whole.exists():
            self.make(self.whole)
        for name in names:
            if name in RUNS and name not in self.made:
                failed = make_runs(self.whole, {name: RUNS[name]})
                assert not failed, failed
                self.made.add(name)
        if not (self.whole / "settings.json").exists():
            (self.whole / "settings.json").write_text(json.dumps(SETTINGS))
        self.case.mkdir(exist_ok=True)
        for left in self.case.iterdir():  # the folder itself stays: the process may be in it
            if left.name not in names or seen(left) != self.laid.get(left.name):
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        for name in names:
            if not os.path.lexists(self.case / name):
                copy = shutil.copytree if (self.whole / name).is_dir() else shutil.copy2
                copy(self.whole / name, self.case / name)
                self.laid[name] = seen(self.case / name)

    @contextmanager
    def inside(self) -> Iterator[Path]:
        """Work in the case's folder."""
        before = Path.cwd()
        os.chdir(self.case)
        try:
            yield self.case
        finally:
            os.chdir(before)


def seen(place: Path, but: str = "") -> Seen:
    """Size, time and mode of every file at or below a place, but those in one folder there."""
    found = {}
    files = [place] if place.is_symlink() or not place.is_dir() else []
    for folder, folders, names in os.walk(place):
        if Path(folder) == place and but in folders:
            folders.remove(but)
        files += [Path(folder, name) for name in names]
    for file in files:
        stat = os.lstat(file)
        found[str(file)] = (stat.st_size, stat.st_mtime_ns, stat.st_mode)
    return found
