"""The run folder: where a verb writes, how it is resumed, and what is recorded about how it was made."""

from __future__ import annotations

import json
import platform
import shutil
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from midblock.base.errors import MidblockError
from midblock.base.files import replace_atomically, write_failure, write_json

RECORDED_PACKAGES = ("midblock", "torch", "transformers", "peft", "trl", "accelerate", "safetensors", "numpy", "scipy")
VERBS = ("analyze", "flow", "merge", "probe", "steer", "swap", "tune")  # that fill a run folder


@dataclass
class RunFolder:
    """A folder being filled by one run; `run.json` inside says how far it got.

    Attributes:
        path: the folder.
        record: what `run.json` holds; `save` writes it.
    """

    path: Path
    record: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        path: Path | str,
        verb: str,
        config: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        inputs: Mapping[str, Any] | None = None,
        sources: Collection[Path] = (),
    ) -> RunFolder:
        """Create the folder, or take up the one that is there.

        Args:
            path: the folder; it may exist only with `resume` or `overwrite`.
            verb: the command that fills it, recorded.
            config: every setting that decides the numbers, as plain YAML values.
            resume: continue a run of the same verb and config.
            overwrite: remove what an earlier run left there first.
            inputs: what the files that are read look like (a hash, sizes), by what to call them; recorded.
            sources: files and folders that are read, which `overwrite` must not remove.

        Raises:
            MidblockError: as `check`.
        """
        path = Path(path)
        earlier = cls.check(path, verb, config, resume=resume, overwrite=overwrite, inputs=inputs, sources=sources)
        if earlier is not None:
            earlier["inputs"] = {**earlier.get("inputs", {}), **(inputs or {})}
            run = cls(path, earlier)
            if not run.done:
                run.save()
            return run
        _empty(path)
        run = cls(path, {"verb": verb, "status": "running", "inputs": dict(inputs or {}), **_surroundings()})
        run.save()  # first, so that a folder left by a kill is known as ours
        with replace_atomically(path / "config.yaml") as temporary:
            temporary.write_text(_as_yaml(config), encoding="utf-8")
        return run

    @staticmethod
    def check(
        path: Path | str,
        verb: str,
        config: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        inputs: Mapping[str, Any] | None = None,
        undecided: Collection[str] = (),
        sources: Collection[Path] = (),
    ) -> dict[str, Any] | None:
        """Raise what `open` would raise, and change nothing.

        Args:
            undecided: settings that are not known yet and are not compared.
            sources: as of `open`.

        Returns:
            The record of the run that `resume` would continue; None where one would begin.

        Raises:
            MidblockError: when the folder exists and neither is asked for, is not a run of ours, was made with other
                settings or from other inputs (the message names them), or holds what is read.
        """
        path = Path(path)
        if resume and overwrite:
            raise MidblockError("--resume and --overwrite exclude each other")
        if not _in_use(path):
            return None
        if resume:
            return _resumable(path, verb, config, inputs or {}, undecided)
        if not overwrite:
            hint = "--resume continues it, --overwrite replaces it, or choose another --output-dir"
            raise MidblockError(f"{path} exists already", hint=hint)
        _check_own(path)
        _check_apart(path, sources)
        return None

    @property
    def done(self) -> bool:
        return self.record.get("status") == "done"

    @property
    def partial(self) -> Path:
        """Folder for the state of an unfinished run; `finish` removes it."""
        return self.path / "partial"

    def save(self) -> None:
        write_json(self.path / "run.json", self.record)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record wall time and peak memory of a phase; a resumed phase adds to its earlier time."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add_phase(name, time.perf_counter() - start)
            self.save()

    def add_phase(self, name: str, seconds: float) -> None:
        """Record a phase that was timed elsewhere."""
        phases = self.record.setdefault("phases", {})
        seconds += phases.get(name, {}).get("seconds", 0.0)
        phases[name] = {"seconds": round(seconds, 3), "peak_memory_mb": round(peak_memory() / 2**20)}

    def finish(self) -> None:
        """Mark the run as whole and drop its partial state."""
        self.record["status"] = "done"
        self.save()
        shutil.rmtree(self.partial, ignore_errors=True)


def _in_use(path: Path) -> bool:
    """Whether something lies in the folder.

    Raises:
        MidblockError: it is a file, or the system refuses the name.
    """
    try:
        if path.exists() and not path.is_dir():
            raise MidblockError(f"{path} is a file", hint="--output-dir wants a folder")
        return path.is_dir() and any(path.iterdir())
    except OSError as error:
        raise write_failure(path, error) from error


def _check_own(path: Path) -> None:
    try:
        verb = read_record(path).get("verb")
    except MidblockError:
        verb = None
    if verb not in VERBS:
        hint = "it holds no run.json of ours; remove it yourself or choose another --output-dir"
        raise MidblockError(f"{path} was not written by midblock, so it is not overwritten", hint=hint)


def _check_apart(path: Path, sources: Collection[Path]) -> None:
    where = path.resolve()
    for source in sources:
        if source.resolve().is_relative_to(where):
            what = f"{path} holds {source} itself, which this command reads, so it is not overwritten"
            raise MidblockError(what, hint="choose another --output-dir")


def _empty(path: Path) -> None:
    """Remove what lies in the folder, `run.json` last: until then it is known as ours. The folder may be a link."""
    if not path.is_dir():
        return
    try:
        for entry in sorted(path.iterdir(), key=lambda entry: entry.name == "run.json"):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    except OSError as error:
        raise write_failure(path, error) from error


def _resumable(
    path: Path, verb: str, config: Mapping[str, Any], inputs: Mapping[str, Any], undecided: Collection[str]
) -> dict[str, Any]:
    record = read_record(path)
    if record.get("verb") != verb:
        raise MidblockError(f"{path} holds a run of `midblock {record.get('verb')}`, not of `{verb}`")
    before = _read_config(path / "config.yaml")
    now = yaml.safe_load(_as_yaml(config))
    keys = (before.keys() | now.keys()) - set(undecided)
    other = sorted(key for key in keys if before.get(key) != now.get(key))
    if other:
        changes = ", ".join(f"{key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in other)
        hint = "--resume wants the same settings; choose another --output-dir"
        raise MidblockError(f"{path} was made with other settings: {changes}", hint=hint)
    recorded = record.get("inputs", {})
    changed = [name for name, value in inputs.items() if name in recorded and recorded[name] != value]
    if changed:
        raise MidblockError(f"{path}: {', '.join(changed)} changed since", hint="--overwrite measures it anew")
    return record


def read_record(path: Path | str) -> dict[str, Any]:
    """Read `run.json` of a run folder.

    Raises:
        MidblockError: when it is not there or cannot be read.
    """
    file = Path(path) / "run.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MidblockError(f"{path} is no run folder: {file.name} is missing or broken") from error
    if not isinstance(record, dict):
        raise MidblockError(f"{path} is no run folder: {file.name} is missing or broken")
    return record


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    # On Linux a child's `ru_maxrss` starts at what its parent had when it forked; the kernel's own mark does not.
    status = Path("/proc/self/status")
    if status.exists():
        mark = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None)
        if mark:
            return int(mark.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _surroundings() -> dict[str, Any]:
    versions: dict[str, str | None] = {}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": versions,
        "platform": {"python": platform.python_version(), "system": platform.platform()},
    }


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        config = None
    if not isinstance(config, dict):
        raise MidblockError(f"{file} is missing or broken", hint="--overwrite begins again")
    return config


def _as_yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
