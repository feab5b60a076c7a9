"""BACKENDS: who runs the trials of a study."""

from __future__ import annotations

from collections.abc import Mapping

from midblock.studies.study.by_ray import run_by_ray
from midblock.studies.study.by_submitit import run_by_submitit
from midblock.studies.study.crew import Backend
from midblock.studies.study.here import run_here
from midblock.studies.study.local import run_locally

BACKENDS: Mapping[str, Backend] = {
    "local": run_locally,
    "ray": run_by_ray,
    "submitit": run_by_submitit,
    "here": run_here,
}
