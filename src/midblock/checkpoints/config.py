"""config.json and tokenizer of a folder, loaded with an error that says what is wrong with which file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midblock.base import MidblockError, nearest
from midblock.base.json_file import read_object, shown
from midblock.base.plain_file import check_plain_folder
from midblock.checkpoints.stated_config import check_stated, check_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

TOKENIZER_CONFIG = "tokenizer_config.json"
REASON = 300  # letters of somebody else's error in ours

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

# whatever transformers and torch raise on a stranger's values; bugs of ours look the same, so only around their calls
STRANGE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
)


def load_config(folder: Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Load a folder's config.

    Raises:
        MidblockError: config.json is missing or broken, its model type is unknown, or it needs code that the
            checkpoint ships and the user did not trust.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    _check_known(folder, read_config(folder), trust_remote_code)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        inner = config.get_text_config()
    except (*STRANGE, StrictDataclassError) as error:
        lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
        raise MidblockError(f"{folder / 'config.json'} is not valid: {' '.join(lines[:2])[:REASON]}") from error
    if isinstance(inner, dict):
        raise MidblockError(
            f"{folder / 'config.json'}: a {config.model_type} has no text_config", hint="fetch it again"
        )
    return config


def read_config(folder: Path) -> dict[str, Any]:
    """What a folder's config.json says, as far as that can be of a model.

    Raises:
        MidblockError: it is missing, broken, beyond a limit, or states what no model has.
    """
    file = folder / "config.json"
    if not os.path.lexists(file):
        raise _no_config(folder)
    config = read_object(file)
    check_stated(config, file)
    return config


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder ships a tokenizer of its own."""
    return any((folder / name).exists() for name in TOKENIZER_FILES) or any(folder.glob("*.tiktoken"))


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a folder's tokenizer.

    Raises:
        MidblockError: there is none, it is broken, or it needs a package or code that is not there.
    """
    from transformers import AutoTokenizer

    check_plain_folder(folder)
    if os.path.lexists(folder / TOKENIZER_CONFIG):
        check_tokenizer(read_object(folder / TOKENIZER_CONFIG), folder / TOKENIZER_CONFIG)
    # without this check transformers makes an empty tokenizer for some model types
    if not has_tokenizer(folder):
        raise MidblockError(f"no tokenizer in {folder}", hint="copy tokenizer.json and tokenizer_config.json there")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        # the tokenizers library raises bare Exception on a broken tokenizer.json; subclasses unknown to us are bugs
        if type(error) is not Exception and not isinstance(error, STRANGE):
            raise
        raise MidblockError(f"cannot load the tokenizer in {folder}: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """Somebody else's error in a line: its first words, and its kind where those alone tell nothing."""
    lines = str(error).strip().splitlines() or [""]
    words = lines[0].strip()[:REASON]
    return words if " " in words else f"{type(error).__name__} {words}".strip()


def _no_config(folder: Path) -> MidblockError:
    configs = [
        file
        for name in ("config.json", "adapter_config.json", "carrier_config.json")
        for file in folder.glob(f"*/{name}")
    ]
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
    close = nearest(str(kind)[:REASON], CONFIG_MAPPING.keys())
    hint = (f"did you mean {close!r}? " if close else "") + "a newer transformers may know it"
    raise MidblockError(f"{folder / 'config.json'}: unknown model_type {shown(kind)}", hint=hint)
