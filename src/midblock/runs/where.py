"""Where: where a run's results go, and what to do with what is there; declared once for every verb.

Described in docs/run_folder.md, "Writing, stopping, resuming".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from midblock.base import MidblockError, Progress, user_path
from midblock.runs.stopping import seconds_of

Hidden = Parameter(parse=False)  # known to Python only
OutputDir = Parameter(name=("--output-dir", "--output", "-o"))  # of every verb that has one


@dataclass(frozen=True, kw_only=True)
class Where:
    """Keyword arguments of every verb that fills a run folder.

    Raises:
        MidblockError: `resume` and `overwrite` together, or a `max_time` that is none.
    """

    output_dir: Annotated[Path | str | None, OutputDir] = None
    """Run folder to write. Left out, the command line writes to `runs/VERB-NAME`; from Python nothing is written, and
    verbs that leave a model or a log (tune, flow, merge) ask for it."""

    resume: bool = False
    """Continue a run that was stopped, with the same settings."""

    overwrite: bool = False
    """Replace a run that is there."""

    max_time: str | None = None
    """Stop cleanly after so long (`3h`, `1h30m`, seconds), so that --resume goes on; exit code 124."""

    progress: Annotated[Progress | None, Hidden] = None
    """Told how far it got."""

    command: Annotated[str | None, Hidden] = None
    """How it was called, recorded."""

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise MidblockError("--resume and --overwrite exclude each other")
        if self.max_time is not None:
            seconds_of(self.max_time)

    @property
    def folder(self) -> Path | None:
        """The run folder, None where nothing is written."""
        return None if self.output_dir is None else user_path(self.output_dir)

    def needed(self, verb: str) -> Path:
        """The run folder of a verb that cannot do without one.

        Raises:
            MidblockError: none was given.
        """
        if self.folder is None:
            raise MidblockError(f"{verb} wants a folder to write", hint="output_dir")
        return self.folder
