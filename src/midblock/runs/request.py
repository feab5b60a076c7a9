"""What a run is asked to do, written down: the only place where settings become YAML and files become fingerprints.

A request has two states. A `Draft` is what is known before the data is read; some settings may still wait for that.
A `Request` is complete: the run folder of one can be opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midblock.base import MidblockError
from midblock.base.files import stamps
from midblock.base.yaml_text import yaml_text
from midblock.checkpoints import Checkpoint, Pair, soft_prompt_in
from midblock.data import ExampleSet, local_places
from midblock.runs.verbs import VERBS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

DATA = "the data"
DATA_FILES = "the files of the data"  # their age: what tells a change where the content is not read again


@dataclass(frozen=True)
class Request:
    """A complete request.

    Attributes:
        verb: a name of `VERBS`.
        config: everything that decides the numbers, as plain YAML values: running it again gives the same.
        inputs: what the files that are read look like (a hash; names, sizes and ages), by what to call them.
        sources: files and folders that are read, which nothing may remove.
        in_memory: names of models that are no files, so that nothing says an earlier run was about them.
    """

    verb: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[Path, ...] = ()
    in_memory: tuple[str, ...] = ()

    def as_yaml(self) -> str:
        """The text of config.yaml."""
        return yaml_text(dict(self.config))


@dataclass(frozen=True)
class Draft:
    """A request as far as it is known before the data is read.

    Attributes:
        known: the request; what is undecided has its provisional value.
        undecided: settings that reading the data will decide, so that they are not compared with an earlier run's.
    """

    known: Request
    undecided: frozenset[str] = frozenset()

    def decided(self, inputs: Mapping[str, Any], **settings: Any) -> Request:
        """The complete request.

        Args:
            inputs: what reading added to what is known of the files.
            **settings: values of the undecided settings.
        """
        known = self.known
        config = {**known.config, **settings}
        return replace(known, config=config, inputs={**known.inputs, **inputs})


def draft_of(
    verb: str,
    pair: Pair,
    data: str | ExampleSet | None,
    *settings: DataclassInstance,
    models: Mapping[str, Any] | None = None,
    undecided: Iterable[str] = (),
    sources: Sequence[Path] = (),
    inputs: Mapping[str, Any] | None = None,
) -> Draft:
    """The draft of a verb that looks at a pair of models and, mostly, at data.

    Args:
        data: None where none is read.
        *settings: in the order in which config.yaml lists them.
        models: the models as the command's arguments name them; by default `base` and the list `tuned`.
        undecided: as of `Draft`.
        sources, inputs: beside those of the models and the data.
    """
    check_all(verb, pair)
    tuned = [variant.reference for variant in pair.tuned]
    named = models or {"base": pair.base.reference, **({"tuned": tuned} if tuned else {})}
    config = {**named, **({"data": data} if isinstance(data, str) else {}), **as_config(*settings)}
    read = local_places(data) if data is not None else []
    places = (*pair.places, *read, *sources)
    known = {
        **weights_of(pair),
        **({DATA_FILES: files_of(read)} if read and isinstance(data, str) else {}),
        **({DATA: data.content_hash} if isinstance(data, ExampleSet) else {}),
        **(inputs or {}),
    }
    in_memory = tuple(variant.name for variant in pair if variant.checkpoint is None)
    return Draft(Request(verb, config, known, places, in_memory), frozenset(undecided))


def check_all(verb: str, pair: Pair) -> None:
    """Raise MidblockError for a pair with a soft prompt where the verb takes none."""
    for variant in pair:
        if variant.checkpoint is not None:
            check_takes(verb, variant.checkpoint)
        elif variant.loaded is not None and soft_prompt_in(variant.loaded) is not None:
            _refuse_prompt(verb, variant.name)


def check_takes(verb: str, checkpoint: Checkpoint) -> None:
    """Raise MidblockError for a model with a soft prompt where the verb takes none."""
    if checkpoint.prompt is not None:
        _refuse_prompt(verb, str(checkpoint.reference))


def _refuse_prompt(verb: str, name: str) -> None:
    if not VERBS[verb].prompts:
        able = ", ".join(name for name, each in VERBS.items() if each.prompts)
        what = f"{name} has a soft prompt, which {verb} does not take"
        raise MidblockError(what, hint=f"give the model alone; with a soft prompt: {able}")


def weights_of(pair: Pair) -> dict[str, Any]:
    """Names, sizes and ages of the weight files, by whose they are; models in memory have none."""
    return {f"the weights of {each.name}": each.files() for each in pair if each.checkpoint is not None}


def files_of(places: Sequence[Path]) -> list[list[str | int]]:
    """Name, size and age of each file in these places."""
    return stamps(file for place in places for file in (sorted(place.rglob("*")) if place.is_dir() else (place,)))


def models_of(pair: Pair) -> list[dict[str, Any]]:
    """What `run.json` says about the models, once they are loaded."""
    described = [variant.as_record() for variant in pair]
    if not pair.tuned:
        del described[0]["role"]  # a lone model is neither base nor tuned
    return described


def as_config(*settings: DataclassInstance) -> dict[str, Any]:
    """Settings as YAML values, one mapping, in the order of their fields.

    A class may say with `FOLLOWED_BY` that some of its options stand behind another one: options that it shares with
    other verbs come first in its fields, and need not come first in the file.
    """
    found: dict[str, Any] = {}
    for each in settings:
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(each).items()}
        found |= {key: values[key] for key in _in_order(list(values), getattr(each, "FOLLOWED_BY", {}))}
    return found


def _in_order(keys: list[str], followed_by: Mapping[str, Sequence[str]]) -> list[str]:
    moved = {follower for followers in followed_by.values() for follower in followers}
    order: list[str] = []
    for key in (key for key in keys if key not in moved):
        order += [key, *followed_by.get(key, ())]
    return order
