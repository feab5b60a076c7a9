"""`export`: a tuned adapter as what other programs load: a checkpoint, an equal-rank adapter, or their settings.

Described in docs/tuning/export.md.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from midblock import __version__
from midblock.base import MidblockError, unknown, user_path, write_json
from midblock.base.files import folder_atomically, replace_atomically, size_text
from midblock.base.quoting import without_places
from midblock.checkpoints import Checkpoint, EffectiveTensors, open_checkpoint
from midblock.checkpoints.adapter import CONFIG
from midblock.checkpoints.adapter_notes import adapter_notes
from midblock.checkpoints.checkpoint_files import copy_small_files
from midblock.checkpoints.readable import unreadable
from midblock.checkpoints.settings import DTYPES
from midblock.runs.lenient import read_json
from midblock.runs.lock import held
from midblock.tuning.export.adapter_source import AdapterSource
from midblock.tuning.export.axolotl import write_axolotl
from midblock.tuning.export.equal_rank import write_equal_rank
from midblock.tuning.export.merged import write_merged
from midblock.tuning.export.merged_by_peft import write_merged_by_peft
from midblock.tuning.export.snippets import write_lora_config
from midblock.tuning.export.trl_script import write_trl

RECORD = "export.json"
NOTED_LOSS = 0.1  # of a change
CHANGE = "largest error of a tensor's change, relative to the change"
LOGITS = "largest error of a logit, relative to the largest logit"


@dataclass(frozen=True)
class Made:
    """What a form says about what it wrote; `measured` is what `error` is, None where nothing is a number."""

    notes: list[str]
    error: float | None = None
    measured: str = ""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the folder or file.
        to: the form.
        error: how far what was written is from what it should be, as `measured` says; None where nothing is a number.
        measured: what `error` is.
        notes: what to know before using it.
    """

    path: Path
    to: str
    error: float | None
    measured: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """What is asked for: the source, the base given instead of the one it names, the type of the weights."""

    source: AdapterSource
    base: str | None
    dtype: torch.dtype | None


@dataclass(frozen=True)
class Form:
    """One form to export to.

    Attributes:
        write: writes into an empty folder, or to the file.
        file: the file's name when a folder is asked for; None when the whole folder is the result.
    """

    write: Callable[[Asked, Path], Made]
    file: str | None = None


def export(
    source: str | Path,
    output: str | Path,
    to: str = "merged",
    base: str | None = None,
    overwrite: bool = False,
    dtype: str = "auto",
) -> Path:
    """Write a tuned adapter in a form that other programs load, and check it against the adapter.

    - `merged`: base plus adapter as a safetensors checkpoint, tensor by tensor. Where the adapter is neither low-rank
      changes (with DoRA's magnitudes or without, stacked experts too) nor whole tensors (IA3, VeRA, single tokens),
      PEFT merges it instead, with the whole model in memory.
    - `equal-rank`: a PEFT adapter of one rank and one scale, for vLLM and llama.cpp.
    - `lora-config`: PEFT's adapter_config.json, for training anew.
    - `axolotl`: an Axolotl recipe.
    - `trl`: a Python script with TRL's SFTTrainer.

    Args:
        source: a PEFT adapter folder, a run folder of `tune`, or an adapter's name on the hub.
        output: folder to write; for the last three a name with a suffix is the file itself.
        to: the form.
        base: a model reference to use instead of the base that the adapter names.
        overwrite: replace what an earlier export left there.
        dtype: of merged weights: `float32`, `bfloat16`, …; `auto` keeps the base's.

    Returns:
        The folder or file.

    Raises:
        MidblockError: anything the user can mend; nothing is left at `output` then.

    Example:
        >>> from midblock import export, tune
        >>> adapter = tune("start", "sums.jsonl", "010", max_steps=2, output_dir="to-export").path
        >>> export(adapter, "merged").name
        'merged'
        >>> export(adapter, "recipe.yaml", to="axolotl").exists()
        True
    """
    return run_export(source, output, to, base, overwrite, dtype).path


def run_export(
    source: str | Path,
    output: str | Path,
    to: str = "merged",
    base: str | None = None,
    overwrite: bool = False,
    dtype: str = "auto",
) -> Exported:
    """Do what `export` does, and say also how exact it came out.

    Raises:
        MidblockError: as `export`.
    """
    if to not in FORMS:
        raise unknown("form to export to", to, FORMS)
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    if dtype != "auto" and to != "merged":
        raise MidblockError(f"--dtype is about merged weights, not about --to {to}")
    form, output = FORMS[to], user_path(output)
    is_file = form.file is not None and output.suffix != ""
    _check_free(output, is_file, overwrite)
    found = AdapterSource.find(str(source))
    _check_apart(output, _read(found, base))
    asked = Asked(found, base, None if dtype == "auto" else getattr(torch, dtype))
    with held(output, beside=True):
        _check_free(output, is_file, overwrite)  # another export may have ended since
        if is_file:
            with replace_atomically(output) as temporary:
                made = form.write(asked, temporary)
        else:
            made = _write_folder(form, to, asked, output)
    return Exported(output, to, made.error, made.measured, tuple(made.notes))


def _write_folder(form: Form, to: str, asked: Asked, output: Path) -> Made:
    """Fill a folder under another name; it takes its own when it is whole."""
    with folder_atomically(output) as folder:
        made = form.write(asked, folder / form.file if form.file else folder)
        origin = {"source": str(asked.source.folder), "base": asked.base or asked.source.settings.base}
        told = {name: without_places(place) if place else place for name, place in origin.items()}
        files = [RECORD, *_files(folder)]
        write_json(folder / RECORD, {"to": to, **told, **asdict(made), "files": files, "midblock": __version__})
    return made


def _check_free(output: Path, is_file: bool, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not is_file and not any(output.iterdir())):
        return
    if output.is_dir() == is_file:
        raise MidblockError(f"{output} is a {'folder' if is_file else 'file'}", hint="choose another name")
    if not overwrite:
        raise MidblockError(f"{output} exists already", hint="--overwrite replaces it, or choose another name")
    if not is_file:
        _check_own(output)


def _check_own(folder: Path) -> None:
    """Do nothing if all that lies in the folder is what an earlier export wrote there."""
    record: dict[str, Any] = read_json(folder / RECORD, {})
    hint = "remove it yourself or choose another name"
    if record.get("to") not in FORMS or "midblock" not in record:
        what = f"{folder} was not written by `midblock export`, so it is not overwritten"
        raise MidblockError(what, hint=f"it holds no {RECORD} of ours; {hint}")
    others = [name for name in _files(folder) if name not in record.get("files", _files(folder))]
    if others:
        raise MidblockError(f"{folder} holds {others[0]}, which no export wrote, so it is not overwritten", hint=hint)


def _files(folder: Path) -> list[str]:
    """Names of all that lies in the folder, or of the folders in it that hold nothing."""
    found = (
        place for place in folder.rglob("*") if place.is_symlink() or not place.is_dir() or not any(place.iterdir())
    )
    return sorted(place.relative_to(folder).as_posix() for place in found)


def _read(source: AdapterSource, base: str | None) -> dict[str, Path]:
    """The local folders that the export reads, by what is in them."""
    places = {"the adapter": source.folder}
    named = base or str(source.settings.base or "")
    return {**places, "the base": place} if named and (place := user_path(named)).exists() else places


def _check_apart(output: Path, places: Mapping[str, Path]) -> None:
    """Do nothing if the output replaces nothing that is read."""
    where = output.resolve()
    for title, place in places.items():
        source = place.resolve()
        if source.is_relative_to(where) or (output.is_file() and where.is_relative_to(source)):
            raise MidblockError(f"{output} holds {title} itself", hint="choose another name")


def _merged(asked: Asked, folder: Path) -> Made:
    checkpoint = open_checkpoint(str(asked.source.folder), base=asked.base)
    _check_base(checkpoint, folder)
    reason, told = asked.source.settings.inexpressible, adapter_notes(checkpoint, asked.source.folder.name)
    if reason is None:
        lost = write_merged(checkpoint, folder, asked.dtype)
        return Made([*_loss_note(lost), *told], lost, CHANGE)
    error = write_merged_by_peft(checkpoint, folder, asked.dtype)
    return Made([*told, f"merged by PEFT, with the whole model in memory: {reason}"], error, LOGITS)


def _loss_note(lost: float) -> list[str]:
    if lost < NOTED_LOSS:
        return []
    return [f"rounding takes away up to {lost:.0%} of a tensor's change; --dtype float32 keeps it"]


def _check_base(checkpoint: Checkpoint, folder: Path) -> None:
    with EffectiveTensors.of_checkpoint(replace(checkpoint, adapter=None)) as tensors:
        codes = bool(tensors.coded) or bool(unreadable(tensors))
    if codes:
        hint = "give its full-precision original with --base"
        raise MidblockError(f"the base {checkpoint.folder} is stored quantised: nothing can be added to it", hint=hint)
    size = sum(file.stat().st_size for file in checkpoint.folder.glob("*.safetensors"))
    if shutil.disk_usage(folder).free < size:
        raise MidblockError(f"no space left beside {folder.parent}: {size_text(size)} are needed")


def _equal_rank(asked: Asked, folder: Path) -> Made:
    error, notes = write_equal_rank(asked.source, folder)
    copy_small_files(asked.source.folder, folder, readme=True)
    if asked.base:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        write_json(folder / CONFIG, {**config, "base_model_name_or_path": asked.base})
    return Made(notes, error, CHANGE)


def _plan(write: Callable[[AdapterSource, Path, str | None], list[str]]) -> Callable[[Asked, Path], Made]:
    return lambda asked, file: Made(write(asked.source, file, asked.base))


FORMS: Mapping[str, Form] = {
    "merged": Form(_merged),
    "equal-rank": Form(_equal_rank),
    "lora-config": Form(_plan(write_lora_config), CONFIG),
    "axolotl": Form(_plan(write_axolotl), "axolotl.yaml"),
    "trl": Form(_plan(write_trl), "train.py"),
}
