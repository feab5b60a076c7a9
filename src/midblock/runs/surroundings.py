"""What `run.json` says of the machine: versions, platform, when it began, and how much memory was needed so far."""

from __future__ import annotations

import platform
import sys
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

RECORDED_PACKAGES = ("midblock", "torch", "transformers", "peft", "trl", "accelerate", "safetensors", "numpy", "scipy")


def surroundings() -> dict[str, Any]:
    """When this process looked at the clock, versions of what decides numbers, and the platform."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {package: _version(package) for package in RECORDED_PACKAGES},
        "platform": {"python": platform.python_version(), "system": platform.platform()},
    }


@cache
def _version(package: str) -> str | None:
    """The version this process works with, None where there is none; looking through what is installed is slow."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


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
