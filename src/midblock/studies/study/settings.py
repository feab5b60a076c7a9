"""How a study is carried out: options that do not decide its numbers, and two that stand for keys of its file."""

from __future__ import annotations

from dataclasses import dataclass

from midblock.base import MidblockError
from midblock.base.options import check_range, check_sizes


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """Options of `midblock study`.

    Raises:
        MidblockError: a value out of range, or options that exclude each other.
    """

    jobs: int = 1
    """Trials at a time; with Slurm, tasks of the array that run at a time."""

    threads: int | None = None
    """Threads of each trial's process; the cores of this machine over `jobs` when left out."""

    backend: str = "local"
    """Who runs the trials: `local` (processes of this machine), `ray`, `submitit` (Slurm, or processes), or `here`
    (this process, one after the other, to look into one)."""

    ray_address: str | None = None
    """With `ray`, the cluster: `auto`, `HOST:PORT` or `ray://HOST:PORT`; one of this machine's own when left out."""

    cluster: str | None = None
    """With `submitit`: `slurm` or `local`; what there is when left out."""

    partition: str | None = None
    """With `submitit`, Slurm's partition."""

    hours: float = 24.0
    """With `submitit`, hours after which Slurm ends a trial's job; it is put back into the queue and goes on."""

    gpus: int = 0
    """GPUs that a trial is given by `ray` and `submitit`."""

    halving: bool = False
    """Successive halving on the validation score, also where the file does not say so."""

    score_recommendation: bool = False
    """Ask `recommend` and its rivals for advice and score it against the sweep, also where the file does not say so."""

    peft_comparison: bool = False
    """Write each trial in the format of PEFT's MetaMathQA comparison too (`peft_comparison/*.json`)."""

    dry_run: bool = False
    """Check everything, print the plan and what it will cost, and stop there."""

    def __post_init__(self) -> None:
        check_sizes(self)
        check_range(self, {"jobs": 1, "gpus": 0}, {"jobs": 10_000})
        if self.threads is not None:
            check_range(self, {"threads": 1}, {})
        if not 0 < self.hours <= 10_000:
            raise MidblockError(f"hours is {self.hours:g}; it must lie above 0 and be at most 10,000")
        for name, backend in (("ray_address", "ray"), ("cluster", "submitit"), ("partition", "submitit")):
            if getattr(self, name) is not None and self.backend != backend:
                raise MidblockError(f"{name} is about another backend", hint=f"--backend {backend}, or leave it out")
