"""What lies beside the weights of a merge: config, and the tokenizer that suits it better."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from midblock.base import MidblockError
from midblock.base.json_file import read_object
from midblock.checkpoints import Checkpoint
from midblock.checkpoints.checkpoint_files import copy_small_files, write_config
from midblock.checkpoints.config import TOKENIZER_FILES, has_tokenizer
from midblock.data.tokenizers import tokenizer_difference

GENERATION = "generation_config.json"
TEMPLATES = ("chat_template.jinja", "chat_template.json")
TOKENIZER = (
    *TOKENIZER_FILES,
    *TEMPLATES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
)
PROBE = "Natalia sold 48 clips in April; how many did she sell?\n\n    return x**2  # größer, 数学"


def write_small_files(base: Checkpoint, tuned: Checkpoint, folder: Path, changes: Mapping[str, Any]) -> list[str]:
    """Write everything but the weights; config.json last, since a folder without it is no model.

    The tuned model's tokenizer, chat template and generation config are taken where its token ids are the base's: chat
    tuning sets them. The rest is the base's.

    Args:
        changes: fields of the base's config.json to set.

    Returns:
        Notes: whose tokenizer it is.
    """
    copy_small_files(base.folder, folder, code=base.trust_remote_code)
    if base.adapter is not None and has_tokenizer(base.adapter.folder):
        copy_small_files(base.adapter.folder, folder)
    own = tuned.adapter.folder if tuned.adapter is not None else tuned.folder
    notes = []
    if has_tokenizer(own):
        difference = _difference(base, tuned, own)
        if difference is None:
            notes += _take_tokenizer(own, folder)
        else:
            notes.append(f"The tokenizer is the base's; the tuned model's reads otherwise: {difference}.")
    write_config(base.folder, folder, changes)
    return notes


def _difference(base: Checkpoint, tuned: Checkpoint, own: Path) -> str | None:
    """How the token ids differ; None where they are the same, or the base has no tokenizer at all."""
    if not base.has_tokenizer:
        return None
    ours = base.adapter.folder if base.adapter is not None and has_tokenizer(base.adapter.folder) else base.folder
    first, second = ours / "tokenizer.json", own / "tokenizer.json"
    if first.is_file() and second.is_file() and first.read_bytes() == second.read_bytes():
        return None
    mine, theirs = base.tokenizer(), tuned.tokenizer()
    if added := sorted(theirs.get_vocab().keys() - mine.get_vocab().keys()):
        beyond = [
            token for token in added if theirs.get_vocab()[token] >= int(base.config.get_text_config().vocab_size)
        ]
        if beyond:
            return f"{beyond[0]!r} has an id that the model has no row for"
    return tokenizer_difference(mine, theirs, [PROBE])


def _take_tokenizer(source: Path, folder: Path) -> list[str]:
    """Copy the tokenizer's files and the generation config; a broken generation config stays behind.

    Returns:
        Notes: what was taken.
    """
    whole = not (source / GENERATION).exists() or _read_object(source / GENERATION) is not None
    for name in TOKENIZER:
        if name not in TEMPLATES or _has_template(source):
            (folder / name).unlink(missing_ok=True)
    for name in (*TOKENIZER, GENERATION) if whole else TOKENIZER:
        if (source / name).is_file():
            (folder / name).write_bytes((source / name).read_bytes())
    for file in source.glob("*.tiktoken"):
        (folder / file.name).write_bytes(file.read_bytes())
    if whole:
        return ["Tokenizer, chat template and generation config are the tuned model's, its ids the base's."]
    return [
        "Tokenizer and chat template are the tuned model's, its ids the base's.",
        f"The tuned model's {GENERATION} is broken: the base's stays, if it has one.",
    ]


def _has_template(folder: Path) -> bool:
    if any((folder / name).exists() for name in TEMPLATES):
        return True
    settings = folder / "tokenizer_config.json"
    if not settings.exists():
        return False
    read = _read_object(settings)
    if read is None:
        raise MidblockError(f"{settings} is no JSON object", hint="fetch the tokenizer again")
    return bool(read.get("chat_template"))


def _read_object(file: Path) -> dict[str, Any] | None:
    """What a JSON file holds; None where that is no object."""
    try:
        return read_object(file)
    except MidblockError:
        return None
