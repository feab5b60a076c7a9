"""Trials: what a study's file comes to, one tuning each, with a name that is a folder's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Any

from midblock.base import MidblockError, unknown
from midblock.checkpoints import LoadSettings
from midblock.studies.study.study_file import MOST_TRIALS, Options, StudyFile
from midblock.tuning import TuneSettings
from midblock.tuning.loop.tune import tune_draft

BASE = "base"  # the trial that evaluates the model before tuning
NOT_IN_STUDIES = ("push_to_hub", "hub_model_id", "hub_private_repo", "report_to")
BINDS = tuple(each.name for cls in (TuneSettings, LoadSettings) for each in fields(cls))
SHORT = {"layers": "", "method": "", "loss": "", "anchor": "", "match_parameters": "", "learning_rate": "lr"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Trial:
    """One tuning of a study.

    Attributes:
        name: of its folder.
        arm: what is compared: the trial without its seed and without what is selected.
        seed: of tune.
        point: the values of the selected keys, in their order.
        options: of tune, all that are given.
        share: of the steps; below 1 it only helps to choose (successive halving by steps).
    """

    name: str
    arm: str
    seed: int
    point: tuple[Any, ...] = ()
    options: Options = field(default_factory=dict)
    share: float = 1.0


def trials_of(study: StudyFile) -> tuple[Trial, ...]:
    """Every trial of a study at its full length, in the file's order.

    Raises:
        MidblockError: there are none, or too many; a key binds to no option of tune; two have one name, or a name is
            no folder's.
    """
    _check_keys(study)
    arms = [*_grid_arms(study), *_further_arms(study)]
    if not arms or not (study.grid or study.trials):
        raise MidblockError("the study has no trials", hint='grid: {layers: ["11111", "01100"], seed: [0, 1, 2]}')
    repeated = _repeated(study)
    count = len(arms)
    for key in repeated:
        count *= len(study.grid[key])
    if count > MOST_TRIALS:
        raise MidblockError(f"the study has {count:,} trials", hint=f"{MOST_TRIALS:,} are the most")
    found = tuple(trial for name, options in arms for trial in _trials_of_arm(study, name, options, repeated))
    _check_names(found)
    return found


def check_trials(study: StudyFile, trials: Sequence[Trial]) -> None:
    """Raise MidblockError for what tune would refuse before it reads data and weights; the trial is named."""
    seen: set[str] = set()
    for trial in trials:
        alike = repr(sorted({**trial.options, "seed": trial.seed < 2**31}.items()))
        if alike in seen:  # another seed tells nothing new
            continue
        seen.add(alike)
        try:
            tune_draft(study.base, study.data, **tune_options(trial))
        except MidblockError as error:
            raise MidblockError(f"trial {trial.name}: {error.what}", hint=error.hint) from error
        except (TypeError, ValueError) as error:
            raise MidblockError(f"trial {trial.name}: {error}", hint="see midblock tune --help") from error


def tune_options(trial: Trial) -> dict[str, Any]:
    """The keyword arguments of `tune`."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in trial.options.items()}


def arms_of(trials: Sequence[Trial]) -> list[str]:
    return list(dict.fromkeys(trial.arm for trial in trials))


def reference_arm(study: StudyFile, trials: Sequence[Trial]) -> str:
    """The arm that others are compared with; the base where none tunes all blocks.

    Raises:
        MidblockError: the file names one that is none.
    """
    arms = arms_of(trials)
    if study.reference is not None:
        if study.reference not in (*arms, BASE):
            raise unknown("arm to refer to", study.reference, (*arms, BASE))
        return study.reference
    whole = [trial.arm for trial in trials if _all_blocks(trial.options.get("layers", "all"))]
    return whole[0] if whole else BASE


def _all_blocks(layers: str) -> bool:
    return layers == "all" or set(layers) == {"1"} or layers in ("0-1", "0.0-1.0")


def _check_keys(study: StudyFile) -> None:
    places = [("option", study.tune), ("key of the grid", study.grid)]
    places += [("option of a trial", {key: 0 for key in trial if key != "name"}) for trial in study.trials]
    for kind, options in places:
        for key in options:
            if key in NOT_IN_STUDIES:
                raise MidblockError(f"{key} is not for studies", hint="tune the best plan with it afterwards")
            if key not in BINDS:
                raise unknown(kind, key, BINDS)


def _repeated(study: StudyFile) -> list[str]:
    """Keys of the grid that every arm goes through."""
    return [key for key in study.grid if key == "seed" or key in study.select]


def _grid_arms(study: StudyFile) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and options of each combination of the keys that make arms."""
    keys = [key for key in study.grid if key not in _repeated(study)]
    if not study.grid or (not keys and study.trials):
        return
    for values in product(*(study.grid[key] for key in keys)):
        chosen = dict(zip(keys, values, strict=True))
        options = {**study.tune, **chosen}
        told = {"layers": options.get("layers", "all")}
        told |= {key: value for key, value in chosen.items() if len(study.grid[key]) > 1}
        yield _name(told), options


def _further_arms(study: StudyFile) -> Iterator[tuple[str, dict[str, Any]]]:
    for trial in study.trials:
        name = trial.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            what = "a trial has no name" if name is None else f"a trial's name is {name!r}"
            raise MidblockError(what, hint="name: letters, digits, `.`, `_` and `-`")
        yield name, {**study.tune, **{key: value for key, value in trial.items() if key != "name"}}


def _trials_of_arm(study: StudyFile, arm: str, options: dict[str, Any], repeated: Sequence[str]) -> Iterator[Trial]:
    given = next((trial for trial in study.trials if trial.get("name") == arm), {})
    open_keys = [key for key in repeated if key not in given]
    for values in product(*(study.grid[key] for key in open_keys)):
        chosen = {**options, **dict(zip(open_keys, values, strict=True))}
        told = {key: chosen[key] for key in open_keys if len(study.grid[key]) > 1}
        point = tuple(chosen.get(key) for key in study.select)
        seed = chosen.get("seed", 0)
        if type(seed) is not int:
            raise MidblockError(f"trial {arm}: seed is {seed!r}", hint="a whole number")
        yield Trial("-".join(filter(None, (arm, _name(told)))), arm, seed, point, chosen)


def _name(values: Mapping[str, Any]) -> str:
    """A part of a folder's name: the layers bare, other values behind what they are."""
    parts = (f"{SHORT.get(key, key)}{_plain(value)}" for key, value in values.items())
    return "-".join(part for part in parts if part)


def _plain(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-")[:60]


def _check_names(trials: Sequence[Trial]) -> None:
    """Two trials of one name would share a folder, on some systems also where only capitals differ."""
    known: set[str] = {BASE}
    for trial in trials:
        if trial.name.lower() in known:
            again = "is the base's own name" if trial.name.lower() == BASE else "is the name of two trials"
            raise MidblockError(f"{trial.name} {again}", hint="take one out, or name it under `trials`")
        known.add(trial.name.lower())
