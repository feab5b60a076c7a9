"""What is recorded of the machine."""

import platform
from importlib import metadata

import torch

from midblock.runs.surroundings import RECORDED_PACKAGES, peak_memory, surroundings


def test_versions_and_platform_are_those_of_this_process():
    found = surroundings()
    assert set(found["versions"]) == set(RECORDED_PACKAGES)
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["platform"]["python"] == platform.python_version()


def test_memory_grows_with_what_is_held():
    before = peak_memory()
    held = torch.ones(2**24)  # 64 MiB
    assert before > 10 * 2**20
    assert peak_memory() >= max(before, held.nbytes)
