"""How a tuning run went, in a few numbers; reading a finished one back, and uploading its result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from midblock.base import LayerTable, MidblockError
from midblock.base.plural import blocks_named, counted
from midblock.base.quoting import without_places
from midblock.runs.lenient import read_json
from midblock.runs.surroundings import peak_memory
from midblock.tuning.loop.log_file import LogFile
from midblock.tuning.loop.outputs import Artifact
from midblock.tuning.loop.tune_settings import TuneSettings

NAMING = ("adapter_config.json", "config.json", "tokenizer_config.json")
AGAIN = "--overwrite begins again"


def summarize_tuning(
    lines: tuple[Mapping[str, Any], ...], planned: Mapping[str, Any], compared: int, artifact: str
) -> dict[str, Any]:
    """What `summary.json` says.

    Args:
        lines: of `log.jsonl`, at least one.
        planned: `plan.json`.
        compared: frozen tensors found unchanged.
        artifact: name of the result's folder.
    """
    last = lines[-1]
    # a single batch says little: the first and the last tenth of the steps, at least one
    few = max(1, len(lines) // 10)
    before, after = ({key: _mean(some, key) for key in ("loss", "nll")} for some in (lines[:few], lines[-few:]))
    headline = (
        f"{blocks_named(planned['layers']).capitalize()} of {planned['total_blocks']} tuned, "
        f"{planned['trained_parameters']:,} parameters: the loss per target token went from {before['nll']:.3f} to "
        f"{after['nll']:.3f} nats in {counted(last['step'], 'step')}."
    )
    seconds = max(last["seconds"], 1e-9)
    return {
        "headline": headline,
        "models": [],
        "loss": {"first": before["loss"], "last": after["loss"]},
        "nll": {"first": before["nll"], "last": after["nll"]},
        "steps": last["step"],
        "tokens_per_second": round(last["tokens"] / seconds, 1),
        "peak_memory_mb": round(peak_memory() / 2**20),
        "untouched": {"checked": compared, "changed": 0},
        "artifact": artifact,
    }


def _mean(lines: Sequence[Mapping[str, Any]], key: str) -> float:
    return sum(line[key] for line in lines) / len(lines)


def read_artifact(folder: Path, target: Path, table: LayerTable) -> Artifact:
    """A finished run, read back from its folder.

    Args:
        target: the result inside it.
        table: its numbers, read already.

    Raises:
        MidblockError: its result or summary is not there any more.
    """
    lines = LogFile(folder / "log.jsonl").read()
    if not target.is_dir():
        raise MidblockError(f"{folder} holds a finished run whose {target.name} is gone", hint=AGAIN)
    summary: dict[str, Any] = read_json(folder / "summary.json", {})
    if not isinstance(summary.get("headline"), str):
        raise MidblockError(f"{folder / 'summary.json'} is missing or broken", hint=AGAIN)
    return Artifact(folder=folder, path=target, table=table, log=lines, summary=summary)


def upload(target: Path, settings: TuneSettings) -> None:
    """Put the result on the hub, in a private repository unless asked otherwise.

    Raises:
        MidblockError: no network, no token, or the hub refuses; the run is whole all the same.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    hub = HfApi()
    try:
        repo = settings.hub_model_id or f"{hub.whoami()['name']}/{target.parent.resolve().name}"
        hub.create_repo(repo, private=settings.hub_private_repo, exist_ok=True)
        files = [CommitOperationAdd(name, content) for name, content in public_files(target).items()]
        hub.create_commit(repo, files, commit_message="Tuned with midblock")
    except Exception as error:  # whatever the hub, or the network library of this version of its client, raises
        what = (
            f"{target} is whole, but was not uploaded: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
        )
        raise MidblockError(what, hint="--resume tries that again") from error


def public_files(target: Path) -> dict[str, Path | bytes]:
    """What is uploaded of a result, by its name there: files, or the text of those that name folders of this machine.

    An adapter names its base, and a tokenizer where it was loaded from: of a path there the last part is told.
    """
    found: dict[str, Path | bytes] = {}
    for file in sorted(place for place in target.rglob("*") if place.is_file()):
        told = _without_places(file) if file.name in NAMING else None
        found[file.relative_to(target).as_posix()] = file if told is None else told
    return found


def _without_places(file: Path) -> bytes | None:
    """The file's text with names for paths; None where it names none."""
    config: dict[str, Any] = read_json(file, {})
    paths = {key: value for key, value in config.items() if key.endswith("name_or_path") and isinstance(value, str)}
    told = {key: without_places(value) for key, value in paths.items()}
    return None if told == paths else json.dumps({**config, **told}, indent=2, ensure_ascii=False).encode()


def check_uploadable(settings: TuneSettings) -> None:
    """Say before training what would stop `upload` after it.

    Raises:
        MidblockError: a name the hub does not take, or no token.
    """
    if not settings.push_to_hub:
        return
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        if settings.hub_model_id is not None:
            validate_repo_id(settings.hub_model_id)
    except HFValidationError as error:
        raise MidblockError(f"the hub takes no such name: {str(error).splitlines()[0]}") from error
    if get_token() is None:
        raise MidblockError("--push-to-hub needs a token", hint="hf auth login, or HF_TOKEN")
