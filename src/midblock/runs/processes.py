"""Several processes of one run, started by `torchrun` or `accelerate launch`: only the main one writes and speaks."""

from __future__ import annotations

import os

import torch


def rank() -> int:
    """Which of the processes this is; 0 is the main one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_size() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def main_process() -> bool:
    return rank() == 0


def barrier() -> None:
    """Wait for the other processes, if there are any."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
