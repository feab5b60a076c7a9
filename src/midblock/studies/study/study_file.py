"""StudyFile: what a study is asked for, read from YAML; what is in it decides the numbers, and nothing else does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from midblock.base import MidblockError, unknown, user_path
from midblock.base.json_file import shown
from midblock.base.yaml_file import check_quoted, read_settings
from midblock.runs.verbs import VERBS

HALVING = ("none", "auto", "seeds", "steps")
MOST_TRIALS = 10_000
Options = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class StudyFile:
    """A study, as its file says it.

    Attributes:
        base: the model that every trial tunes.
        data: what they are tuned on.
        tune: options of tune that all trials share.
        grid: options of tune and their values; every combination is a trial.
        trials: further arms, each a `name` and options; they have the grid's seeds and selected options too.
        evaluate: how every tuned model is tested: `tasks`, `num_samples`, `seed`, `split`, and options of evaluate.
        validate: the same for the scores by which is selected; what it leaves out is as in `evaluate`.
        select: keys of the grid whose value is chosen for each arm by its validation score.
        analyze: options of analyze, where each tested model is to be compared with the base; None for no analysis.
        advice: options of recommend's pilot, where its advice and its rivals' is to be scored against this sweep; None
            where not.
        reference: the arm that others are compared with; the one that tunes all blocks when left out.
        halving: successive halving: `seeds` (more of them for the better half), `steps`, `auto` or `none`.
        keep_arms: halving leaves of each arm the better half of its points, so that no arm is dropped.
        probability: how likely an arm has to be the best to be called so.
        seed: of the resampling.
    """

    base: str
    data: str
    tune: Options = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    trials: Sequence[Options] = ()
    evaluate: Options = field(default_factory=dict)
    validate: Options | None = None
    select: Sequence[str] = ()
    analyze: Options | None = None
    advice: Options | None = None
    reference: str | None = None
    halving: str = "none"
    keep_arms: bool = False
    probability: float = 0.95
    seed: int = 0

    @classmethod
    def read(cls, path: Path | str) -> StudyFile:
        """Read a study's file.

        Raises:
            MidblockError: it cannot be read, a key is unknown, missing or holds something else than it should, or a
                plan of layers is not in quotes.
        """
        path = user_path(path)
        return cls.of(read_settings(path), str(path))

    @classmethod
    def of(cls, found: Options, where: str = "the study") -> StudyFile:
        """The study in a mapping.

        Args:
            where: what to call it in messages.

        Raises:
            MidblockError: as `read`.
        """
        names = [each.name for each in fields(cls)]
        for key in found:
            if key not in names:
                raise unknown("key", key, names)
        for key in ("base", "data"):
            if not isinstance(found.get(key), str):
                raise MidblockError(f"{where} names no {key}", hint=f"a line `{key}: …`")
        study = cls(**_shaped(found, where))
        study._check(where)
        return study

    def with_halving(self) -> StudyFile:
        """The same with successive halving.

        Raises:
            MidblockError: it says nothing of what is chosen by.
        """
        found = replace(self, halving="auto") if self.halving == "none" else self
        found._check("the study")
        return found

    def with_advice(self) -> StudyFile:
        """The same with advice scored against it."""
        return replace(self, advice={}) if self.advice is None else self

    @property
    def halves(self) -> str:
        """What successive halving spares: "seeds", "steps", or "none"."""
        if self.halving != "auto":
            return self.halving
        return "seeds" if len(self.grid.get("seed", ())) > 1 else "steps"

    def as_config(self) -> dict[str, Any]:
        """As config.yaml holds it; a study's file again."""
        plain = {each.name: _plain(getattr(self, each.name)) for each in fields(self)}
        optional = ("validate", "analyze", "advice")  # of these nothing is something else than no options
        return {
            key: value
            for key, value in plain.items()
            if value is not None and (key in optional or value not in ({}, [], False))
        }

    def _check(self, where: str) -> None:
        if self.halving not in HALVING:
            raise unknown("halving", self.halving, HALVING)
        if not 0.5 < self.probability < 1:
            raise MidblockError(f"{where}: probability is {self.probability:g}", hint="above 0.5 and below 1")
        for key in self.select:
            if key not in self.grid:
                raise unknown("key of the grid to select", key, self.grid or ("none",))
            if key in ("seed", "layers"):
                raise MidblockError(f"{where}: {key} cannot be selected", hint="arms and their seeds are compared")
        several = [key for key in self.select if len(self.grid[key]) > 1]
        if self.validate is None and (several or self.halving != "none"):
            what = f"{where} selects {several[0]}" if several else f"{where} halves"
            raise MidblockError(f"{what} and says nothing of `validate`", hint="validate: {num_samples: 100}")


def _shaped(found: Options, where: str) -> dict[str, Any]:
    """The values as the fields have them."""
    shaped = dict(found)
    for key in ("tune", "evaluate", "validate", "analyze", "advice", "grid"):
        if key in found and not (found[key] is None and key in ("validate", "analyze", "advice")):
            shaped[key] = _mapping(found[key], f"{where}: {key}")
    shaped["select"] = [found["select"]] if isinstance(found.get("select"), str) else found.get("select") or ()
    for key, kind in (("select", str), ("trials", dict)):
        value = shaped.get(key) or ()
        if not isinstance(value, list | tuple) or not all(isinstance(each, kind) for each in value):
            raise MidblockError(f"{where}: {key} is no list of {'names' if kind is str else 'trials'}")
        shaped[key] = tuple(value)
    for key, values in shaped.get("grid", {}).items():
        if not isinstance(values, list) or not values:
            raise MidblockError(f"{where}: grid, {key} is no list of values", hint=f"like {key}: [0, 1, 2]")
    for place, option, value in _options(shaped, where):
        if option in VERBS["tune"].plans:
            check_quoted(place, option, value)
    _check_plain(shaped, where)
    return {key: value for key, value in shaped.items() if value is not None}


def _check_plain(shaped: Options, where: str) -> None:
    for key, kind in (("reference", str), ("halving", str), ("probability", float), ("seed", int)):
        value = shaped.get(key)
        if isinstance(value, bool) or not isinstance(value, kind | type(None)):
            raise MidblockError(f"{where}: {key} is {shown(value)}", hint="see docs/study.md")
    if not isinstance(shaped.get("keep_arms", False), bool):
        raise MidblockError(f"{where}: keep_arms is {shown(shaped['keep_arms'])}", hint="true or false")


def _options(shaped: Options, where: str) -> list[tuple[str, str, Any]]:
    """Where each option of tune stands, its name, its value."""
    found = [(f"{where}: tune", key, value) for key, value in shaped.get("tune", {}).items()]
    found += [(f"{where}: grid", key, each) for key, values in shaped.get("grid", {}).items() for each in values]
    return found + [(f"{where}: trials", key, value) for trial in shaped["trials"] for key, value in trial.items()]


def _mapping(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MidblockError(f"{place} is no list of options", hint="a line each, like `num_samples: 200`")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
