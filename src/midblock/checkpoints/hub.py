"""A hub name turned into a local folder, through huggingface_hub's own cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from midblock.base import MidblockError, user_path
from midblock.base.hub import hub_answers
from midblock.checkpoints.reference import ModelReference, nearest_path
from midblock.checkpoints.weight_files import PICKLED_SUFFIXES

SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
# subfolders hold other formats; consolidated.* repeats the weights in the vendor's own layout
IGNORED = ("*/*", "consolidated*")


def hub_folder(reference: ModelReference, *, allow_pickle: bool = False, trust_remote_code: bool = False) -> Path:
    """Download what is missing of a hub model and return its snapshot; without a network, the cached one.

    Args:
        allow_pickle: fetch pickled weights where the repository has no safetensors.
        trust_remote_code: fetch the repository's Python files too.

    Raises:
        MidblockError: not found, gated, no such revision, or no network and not in the cache.
    """
    patterns = ["*.safetensors", *SMALL_FILES, *(["*.py"] if trust_remote_code else [])]
    folder = _snapshot(reference, patterns)
    if allow_pickle and not any(folder.glob("*.safetensors")):
        folder = _snapshot(reference, [*patterns, *(f"*{suffix}" for suffix in PICKLED_SUFFIXES)])
    return folder


def _snapshot(reference: ModelReference, patterns: list[str]) -> Path:
    from huggingface_hub import errors, snapshot_download

    name = str(reference)
    elsewhere = "or download it elsewhere and give its folder"
    try:
        folder = snapshot_download(
            reference.location,
            revision=reference.revision,
            allow_patterns=patterns,
            ignore_patterns=list(IGNORED),
            local_files_only=not _answers(reference),
        )
    except errors.GatedRepoError as error:
        hint = "accept its terms on its page, then run `hf auth login`"
        raise MidblockError(f"{name} is gated on the hub", hint=hint) from error
    except errors.RevisionNotFoundError as error:
        raise MidblockError(f"{reference.location} has no revision {reference.revision!r} on the hub") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise MidblockError(f"no model {name} on the hub", hint=_not_found_hint(reference)) from error
    except errors.LocalEntryNotFoundError as error:
        hint = f"check the network and HF_HUB_OFFLINE, {elsewhere}{_or_nearest(reference)}"
        raise MidblockError(f"{name} is not in the cache and the hub cannot be reached", hint=hint) from error
    except (errors.HTTPError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        hint = f"check the network, `hf auth login` for private models, {elsewhere}"
        raise MidblockError(f"cannot fetch {name} from the hub: {lines[0]}", hint=hint) from error
    return Path(folder)


def _answers(reference: ModelReference) -> bool:
    def ask(hub: Any, seconds: float) -> object:
        return hub.model_info(reference.location, revision=reference.revision, timeout=seconds)

    return hub_answers(ask)


def _not_found_hint(reference: ModelReference) -> str:
    return f"check the spelling; a private model needs `hf auth login`{_or_nearest(reference)}"


def _or_nearest(reference: ModelReference) -> str:
    close = nearest_path(user_path(reference.text))
    return f"; there is no such folder either, did you mean {close}?" if close else ""
