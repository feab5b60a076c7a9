"""The machine: devices with their memory, threads, and where files go.

Cost: questions to the system; of a GPU, starting its driver.
"""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from midblock.base.plural import counted
from midblock.checkpoints.cache import cache_root
from midblock.checkpoints.footprint import available_memory


@dataclass(frozen=True)
class Device:
    """Where models can run.

    Attributes:
        name: as `--device` takes it.
        title: what it is.
        total: bytes of its memory.
        available: bytes that can still be taken.
    """

    name: str
    title: str
    total: int
    available: int


def devices() -> list[Device]:
    """The CPU, and every accelerator that torch sees."""
    found = [Device("cpu", _cpu(), psutil.virtual_memory().total, available_memory("cpu"))]
    if not torch.accelerator.is_available():
        return found
    kind = torch.accelerator.current_accelerator()
    for index in range(torch.accelerator.device_count()):
        name = f"{kind}:{index}" if torch.accelerator.device_count() > 1 else str(kind)
        found.append(_accelerator(name))
    return found


def surface() -> dict[str, Any]:
    """Threads, Python and system, and the cache."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "accelerators": torch.accelerator.device_count(),
        "nccl": bool(torch.distributed.is_available() and torch.distributed.is_nccl_available()),
        "gloo": bool(torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        "cache": {"folder": str(cache_root()), "bytes": folder_size(cache_root())},
    }


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where there is none."""
    if not folder.is_dir():
        return 0
    found = 0
    for base, _, names in os.walk(folder):
        for name in names:
            try:
                found += os.lstat(os.path.join(base, name)).st_size
            except OSError:  # another process removed it meanwhile
                continue
    return found


def free_disk(folder: Path) -> int:
    """Bytes that can still be written where a folder is or would be."""
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _cpu() -> str:
    return f"{platform.processor() or platform.machine()}, {counted(torch.get_num_threads(), 'thread')}"


def _accelerator(name: str) -> Device:
    if torch.device(name).type == "cuda":
        known = torch.cuda.get_device_properties(name)
        return Device(name, known.name, known.total_memory, available_memory(name))
    return Device(name, name, available_memory(name), available_memory(name))
