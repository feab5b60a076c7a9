"""VERBS: the one table of what midblock can be asked to do.

Strings only: the package's face, the command line and run folders read it before anything heavy is loaded. The other
table of verbs, of what their pages show, is in `midblock.report`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """A thing midblock can be asked to do.

    Attributes:
        purpose: one line, for `midblock --help`.
        home: where its Python function lives.
        fills: it fills a run folder.
        resumable: a run that was stopped goes on where it was, with `--resume`.
        goes_on: it goes on where it was when the same command is given again.
        scratch: folders inside a run folder that are not needed any more once the run is whole.
        function: the Python function's name where it is not the verb's.
        layered: it leaves a LayerTable; what it finds else lies in files of its own.
        prompts: it takes models with a soft prompt, `MODEL+PROMPT`.
        processes: several processes that `torchrun` started share its work.
        plans: options that take a plan of layers. A YAML file must quote them: 01100 would be a number.
    """

    purpose: str
    home: str
    fills: bool = True
    resumable: bool = True
    goes_on: bool = False
    scratch: tuple[str, ...] = ("partial",)
    function: str = ""
    layered: bool = True
    prompts: bool = False
    processes: bool = False
    plans: tuple[str, ...] = ()


VERBS: Mapping[str, Verb] = {
    "demo": Verb(
        "Tune the embedded model a little and show what that changed.",
        "midblock.studies.demo",
        fills=False,
        resumable=False,
        goes_on=True,
    ),
    "analyze": Verb(
        "Compare a base with models tuned from it, layer by layer.",
        "midblock.analysis",
        processes=True,
        plans=("layers",),
    ),
    "probe": Verb(
        "Read models off at every depth.",
        "midblock.interventions",
        prompts=True,
        processes=True,
        plans=("generate_layers",),
    ),
    "swap": Verb("Put blocks of one model into the other.", "midblock.interventions", processes=True),
    "evaluate": Verb(
        "Score models on tasks and compare them item by item.",
        "midblock.evaluation",
        layered=False,
        prompts=True,
        processes=True,
    ),
    "steer": Verb(
        "Push a base towards a tuned model by adding directions.", "midblock.interventions", plans=("blocks",)
    ),
    "merge": Verb("Mix a base and a tuned model block by block.", "midblock.interventions", resumable=False),
    # the Trainer makes `checkpoints` even where it saves none
    "tune": Verb(
        "Fine-tune chosen blocks of a model.",
        "midblock.tuning",
        scratch=("partial", "checkpoints"),
        processes=True,
        plans=("layers",),
    ),
    "flow": Verb(
        "Measure gradients over the first steps of tuning.",
        "midblock.tuning",
        scratch=("partial", "checkpoints"),
        processes=True,
        plans=("layers",),
    ),
    "carve": Verb(
        "Press a tuned model's change into few channels, and test them.",
        "midblock.carriers",
        scratch=("partial", "checkpoints"),
        processes=True,
    ),
    "erase": Verb("Train a soft prompt that switches off what tuning taught.", "midblock.carriers", layered=False),
    "recommend": Verb(
        "Say which blocks to tune, from runs, a pilot or a repair.",
        "midblock.studies.recommend.recommend",
        resumable=False,
    ),
    "study": Verb("Tune, evaluate and compare a grid of plans.", "midblock.studies.study.study", layered=False),
    "export": Verb("Write a tuned adapter in another form.", "midblock.tuning", fills=False, resumable=False),
    "doctor": Verb(
        "Say whether a run would start, fit, and how long it takes.",
        "midblock.studies.doctor.doctor",
        fills=False,
        resumable=False,
        prompts=True,
        plans=("layers",),
    ),
    "report": Verb(
        "Draw the page of a run again, or one page of several.",
        "midblock.report",
        fills=False,
        resumable=False,
        function="write_report",
    ),
}
