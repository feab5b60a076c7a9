"""config.json and tokenizer of a folder, loaded with an error that says what is wrong with which file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midblock.base import MidblockError, nearest

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

# any of these is enough to build a tokenizer
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)

BROKEN_TOKENIZER = (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError)


def load_config(folder: Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Load a folder's config.

    Raises:
        MidblockError: config.json is missing or broken, its model type is unknown, or it needs code that the
            checkpoint ships and the user did not trust.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    _check_known(folder, _read_json(folder), trust_remote_code)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ImportError, StrictDataclassError) as error:
        lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
        raise MidblockError(f"{folder / 'config.json'} is not valid: {' '.join(lines[:2])}") from error


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder ships a tokenizer of its own."""
    return any((folder / name).exists() for name in TOKENIZER_FILES) or any(folder.glob("*.tiktoken"))


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a folder's tokenizer.

    Raises:
        MidblockError: there is none, it is broken, or it needs a package or code that is not there.
    """
    from transformers import AutoTokenizer

    # without this check transformers makes an empty tokenizer for some model types
    if not has_tokenizer(folder):
        raise MidblockError(f"no tokenizer in {folder}", hint="copy tokenizer.json and tokenizer_config.json there")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        # the tokenizers library raises bare Exception on a broken tokenizer.json; subclasses unknown to us are bugs
        if type(error) is not Exception and not isinstance(error, BROKEN_TOKENIZER):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise MidblockError(f"cannot load the tokenizer in {folder}: {lines[0]}") from error


def _read_json(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _no_config(folder) from error
    except (OSError, ValueError) as error:
        raise MidblockError(f"{file} is not readable JSON: {error}", hint="fetch it again") from error
    if not isinstance(config, dict):
        raise MidblockError(f"{file} holds no config", hint="fetch it again")
    return config


def _no_config(folder: Path) -> MidblockError:
    configs = [file for name in ("config.json", "adapter_config.json") for file in folder.glob(f"*/{name}")]
    within = sorted(str(file.parent) for file in configs)
    hint = f"did you mean {within[-1]}?" if within else "a model folder has config.json, tokenizer and safetensors"
    return MidblockError(f"{folder} is no model: it has no config.json", hint=hint)


def _check_known(folder: Path, config: dict[str, Any], trust_remote_code: bool) -> None:
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if kind in CONFIG_MAPPING:
        return
    if config.get("auto_map"):
        if trust_remote_code:
            return
        hint = "say --trust-remote-code if you have read it and trust it"
        raise MidblockError(f"{folder} brings its own model code, which is not run", hint=hint)
    if not kind:
        raise MidblockError(f"{folder / 'config.json'} names no model_type")
    close = nearest(str(kind), CONFIG_MAPPING.keys())
    hint = (f"did you mean {close!r}? " if close else "") + "a newer transformers may know it"
    raise MidblockError(f"{folder / 'config.json'}: unknown model_type {kind!r}", hint=hint)
