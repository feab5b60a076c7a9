"""GGUF files, dequantised once into a safetensors folder that everything else can read tensor by tensor."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import io
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError

from midblock.base import MidblockError
from midblock.base.plain_file import check_plain_file, unreadable
from midblock.base.quoting import printable
from midblock.checkpoints.cache import folder_once
from midblock.checkpoints.config import STRANGE, reason_of
from midblock.checkpoints.gguf_whole import check_read, check_whole, rotation_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAGIC = b"GGUF"
CONVERSION = 2  # raised when `convert_gguf` would write something else, so that old cache folders are not taken

# whatever gguf and transformers raise on bytes or architectures they do not know
BROKEN_GGUF = (*STRANGE, StrictDataclassError, struct.error)
BROKEN = "the file is truncated or corrupt, or transformers does not know its architecture or tokenizer"


def gguf_folder(file: Path) -> Path:
    """Return a .gguf as a safetensors folder in the cache, found there by the file's content.

    Raises:
        MidblockError: as `convert_gguf` does.
    """
    _check_readable(file)
    return folder_once(converted_name(sha256(file)), lambda folder: convert_gguf(file, folder))


def converted_name(digest: str) -> str:
    """Name, below the cache's root, of the folder converted from the .gguf with this SHA-256."""
    return f"gguf/{digest[:16]}-v{CONVERSION}"


def sha256(file: Path) -> str:
    """Hash a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def convert_gguf(file: Path, folder: Path) -> None:
    """Dequantise `file` to float32 and write config, generation config, tokenizer and weights into `folder`.

    Raises:
        MidblockError: when the extra `demo` is not installed, or the file is broken or of an unsupported architecture.
    """
    _check_readable(file)
    print(f"dequantising {printable(file.name)} (once) …", file=sys.stderr, flush=True)  # noqa: T201
    with _silence():
        model, tokenizer = _load(file)
        _rebuilt(model).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _check_readable(file: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise MidblockError(f"reading {file.name} needs the package gguf", hint='pip install "midblock[demo]"')
    check_plain_file(file)
    try:
        with file.open("rb") as stream:
            magic = stream.read(len(MAGIC))
    except OSError as error:
        raise unreadable(file, error) from error
    if magic != MAGIC:
        raise MidblockError(f"{file} is no GGUF file", hint="it does not begin with the letters GGUF")


def _load(file: Path) -> tuple[PreTrainedModel, Any]:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    # newer ones fetch a kernel for quantised products from the hub and keep the blocks, if they are not told otherwise
    known = hasattr(transformers, "GgufConfig")
    dense = {"quantization_config": transformers.GgufConfig(dequantize=True)} if known else {}
    options: dict[str, Any] = {"gguf_file": file.name, "dtype": torch.float32, "output_loading_info": True, **dense}
    try:
        rotation = _check(file)
        loaded: Any = AutoModelForCausalLM.from_pretrained(file.parent, **options)
        tokenizer = _tokenizer(file)
    except ImportError as error:
        raise MidblockError(f"cannot convert {file.name}: {error}", hint='pip install "midblock[demo]"') from error
    except BROKEN_GGUF as error:
        raise MidblockError(f"cannot convert {file}: {reason_of(error)}", hint=BROKEN) from error
    model, loading = loaded
    if lost := sorted(loading["missing_keys"]):  # transformers fills them by chance
        what = f"cannot convert {file}: it lacks the tensor {lost[0]} ({len(lost)} missing in all)"
        raise MidblockError(what, hint="fetch the file again")
    check_read(file, sorted(loading["unexpected_keys"]))
    if rotation is not None:
        model.config.rope_parameters = rotation  # taken up where the model is built anew
    return model, tokenizer


def _tokenizer(file: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:
        if type(error) is not Exception:  # the tokenizers library raises that; others are for the caller
            raise
        raise ValueError(f"its tokenizer is broken: {reason_of(error)}") from error


def _check(file: Path) -> dict[str, Any] | None:
    """See that transformers makes of a file what it says, before weights are read; return a scaling that it drops.

    Raises:
        MidblockError: it does not, or the file counts more blocks than it has tensors.
    """
    import torch
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoModelForCausalLM

    reader = GGUFReader(file)
    _check_blocks(file, reader)
    config: Any = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    if (rotation := rotation_of(reader, config)) is not None:
        config.rope_parameters = rotation
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    check_whole(file, reader, config, skeleton)
    return rotation


def _check_blocks(file: Path, reader: Any) -> None:
    """Do nothing if the file may hold as many blocks as it says: each has a tensor of its own.

    Raises:
        MidblockError: it cannot.
    """
    for name, entry in reader.fields.items():
        if name.endswith(".block_count") and (count := int(entry.parts[entry.data[0]][0])) > len(reader.tensors):
            what = f"{file}: {name} is {count}, but it holds {len(reader.tensors)} tensors in all"
            raise MidblockError(what, hint="fetch the file again")


def _rebuilt(model: PreTrainedModel) -> PreTrainedModel:
    """Return the same weights in a model that does not call itself quantised, sharing their memory.

    transformers keeps the GGUF flag after dequantising: `.float()` raises, and a saved config would carry it on.
    """
    import torch

    config = copy.deepcopy(model.config)
    for flag in ("quantization_config", "_pre_quantization_dtype", "_model_name_or_path"):
        if hasattr(config, flag):
            delattr(config, flag)
    config.architectures = [type(model).__name__]
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain


@contextmanager
def _silence() -> Iterator[None]:
    """Keep transformers' bars off the screen (the one of the dequantiser obeys no switch, hence the redirection)."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
