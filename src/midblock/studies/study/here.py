"""The backend `here`: trials in this process, one after the other, for whoever wants to look into one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from midblock.runs.stopping import STOPPING
from midblock.studies.study.crew import Crew, Ended, Work
from midblock.studies.study.worker import logged


def run_here(works: Sequence[Work], crew: Crew, ended: Ended) -> None:
    """Do the works; a trial that brings its process down brings the study down with it."""
    threads = torch.get_num_threads()
    try:
        for work in works:
            logged(*crew.arguments(work))
            ended(work, "")
            STOPPING.check()
    finally:
        torch.set_num_threads(threads)
