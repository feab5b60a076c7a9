"""BACKENDS: who runs the trials of a study; CHECKS: what is looked at before anything is read or written."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from midblock.studies.study.by_ray import check_ray, run_by_ray
from midblock.studies.study.by_submitit import check_submitit, run_by_submitit
from midblock.studies.study.crew import Backend
from midblock.studies.study.here import run_here
from midblock.studies.study.local import run_locally
from midblock.studies.study.settings import StudySettings

BACKENDS: Mapping[str, Backend] = {
    "local": run_locally,
    "ray": run_by_ray,
    "submitit": run_by_submitit,
    "here": run_here,
}
CHECKS: Mapping[str, Callable[[StudySettings], None]] = {"ray": check_ray, "submitit": check_submitit}
