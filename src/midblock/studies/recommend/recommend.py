"""`recommend`: which blocks to tune, through one of three doors: runs, a pilot, or the repair of a tuned model.

Described in docs/recommend.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from midblock.base import MidblockError, Progress, divide, user_path, write_json
from midblock.base.json_file import read_object
from midblock.base.names import own_name
from midblock.checkpoints import LoadSettings
from midblock.data import local_places
from midblock.runs.reading import DEFAULT_DATA
from midblock.runs.request import DATA_FILES, Draft, Request, as_config, files_of
from midblock.runs.run import Bench, Outcome, Ready, carry_out
from midblock.runs.where import Where
from midblock.studies.recommend.door import Door, door_of
from midblock.studies.recommend.from_runs import from_runs
from midblock.studies.recommend.pilot import Pilot
from midblock.studies.recommend.recommendation import FILE, Recommendation
from midblock.studies.recommend.repair import Repair
from midblock.studies.recommend.rows import rows_of, summary_of
from midblock.studies.recommend.settings import RecommendSettings

READ = ("layers.parquet", "summary.json", "log.jsonl")  # of a run folder

Announce = Callable[[str], None]
Work = Callable[[Bench], Recommendation]


def recommend(
    *about: str | Path,
    data: str | None = None,
    general: str | None = None,
    announce: Announce | None = None,
    **options: Any,
) -> Recommendation:
    """Recommend which blocks to tune.

    Args:
        *about: run folders of analyze, swap, flow, probe and steer; or a base, for a pilot; or a base and a model tuned
            from it, for a repair.
        data: of the task: what the pilot tunes on, or what the repair must keep.
        general: what the repair must not have forgotten.
        announce: told what it will cost, before it is spent.
        **options: fields of `RecommendSettings`, `LoadSettings` and `Where`.

    Returns:
        The plan, with reasons, and whether the evidence says anything; where it does not, the plan is P1's 20–80 %.

    Raises:
        MidblockError: arguments that mean none of the doors, a budget too small for one step, validation and test
            examples that overlap, or anything else the user can mend.

    Example:
        >>> from midblock import analyze, load_pair
        >>> _ = analyze(load_pair(base, tuned), data, num_samples=12, metrics="change_own", output_dir="compared")
        >>> recommend("compared").plan.total
        3
    """
    where, loading, settings = divide(options, Where, LoadSettings, RecommendSettings)
    names = [str(each) for each in about]
    door = door_of(names, data, general)
    settings.check_door(door)
    data = DEFAULT_DATA if door == "repair" and data is None else data
    draft = _draft(door, names, data, general, settings, loading)
    found: list[Recommendation] = []

    def prepare(progress: Progress) -> Ready:
        work = _work(door, names, data, general, settings, loading, announce or (lambda told: None))

        def act(bench: Bench) -> Outcome:
            answer = work(bench)
            found.append(answer)
            files = {FILE: partial(_write, answer.as_record())}
            return Outcome(rows_of(answer), summary_of(answer), files=files)

        return Ready(draft.known, act, facts={"seed": settings.seed, "models": _models(door, names)})

    done = carry_out(draft, prepare, where)
    if found:
        return found[0]
    if done.folder is None or not (done.folder / FILE).is_file():
        raise MidblockError("another process makes the recommendation")
    return Recommendation.of_record(read_object(done.folder / FILE), str(done.folder / FILE))


def _work(
    door: Door,
    names: list[str],
    data: str | None,
    general: str | None,
    settings: RecommendSettings,
    loading: LoadSettings,
    announce: Announce,
) -> Work:
    if door == "runs":
        folders = [user_path(name) for name in names]
        return lambda bench: from_runs(folders, settings)
    if door == "pilot":
        pilot = Pilot.plan(names[0], str(data), settings, loading)
        announce(pilot.told)
        return lambda bench: pilot.run(bench.progress)
    repair = Repair.plan(names, str(data), str(general), settings, loading)
    return lambda bench: repair.run(bench.progress)


def _models(door: Door, names: list[str]) -> list[dict[str, str]]:
    """What `run.json` says about the models; those of runs stand in the runs."""
    roles = (("base", "base"), ("tuned", "tuned"))
    named = zip(roles, names, strict=False) if door != "runs" else ()
    return [{"name": own_name(Path(each).name, name) if role == "tuned" else name, "role": role, "reference": each}
            for (name, role), each in named]  # fmt: skip


def _draft(
    door: Door,
    names: list[str],
    data: str | None,
    general: str | None,
    settings: RecommendSettings,
    loading: LoadSettings,
) -> Draft:
    """The request, with what its files look like."""
    given = {name: value for name, value in (("data", data), ("general", general)) if value is not None}
    config = {"about": names, **given, **as_config(settings), **(as_config(loading) if door != "runs" else {})}
    read = [
        place for each in (data, general, settings.test, settings.general_test) if each for place in local_places(each)
    ]
    runs = [user_path(name) for name in names] if door == "runs" else []
    inputs: dict[str, Any] = {
        f"the files of {name}": files_of([file for each in READ if (file := run / each).is_file()])
        for name, run in zip(names, runs, strict=False)
    }
    inputs |= {DATA_FILES: files_of(read)} if read else {}
    models = [place for name in names if door != "runs" for place in local_places(name)]
    return Draft(Request("recommend", config, inputs, (*runs, *read, *models)))


def _write(record: Mapping[str, Any], path: Path) -> None:
    write_json(path, record)
