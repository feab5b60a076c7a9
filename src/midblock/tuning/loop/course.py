"""A course: one training as it is asked for, from references to the request of a run. `tune` and `flow` share it.

Cost: config and plan are read; weights once, for their hash. Described in docs/tuning/README.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midblock.base import LayerPlan, MidblockError
from midblock.checkpoints import Checkpoint, LoadSettings, open_checkpoint
from midblock.checkpoints.carrier_config import APPLIED
from midblock.data import ExampleSet, local_places
from midblock.runs.processes import world_size
from midblock.runs.request import DATA, Draft, Request, as_config, check_takes
from midblock.tuning.loop.arguments import refuse_deepspeed
from midblock.tuning.loop.examples import TrainingExamples
from midblock.tuning.loop.rates import DepthRates
from midblock.tuning.loop.references import check_reference, check_vocabulary, reference_places
from midblock.tuning.place.auto import plan_from_run
from midblock.tuning.place.methods import method_of
from midblock.tuning.settings import CourseSettings, Loop

BASE_WEIGHTS = "the weights of the base"
FROM_RUN = "auto:"


def weights_of(name: str) -> str:
    """What the weights of a model besides the base are called among a run's inputs."""
    return f"the weights of the {name} model"


@dataclass(frozen=True)
class Course:
    """One training, checked as far as it can be before data and weights are read.

    Attributes:
        verb: whose it is.
        base: the model reference as it was given.
        checkpoint: what it leads to.
        plan: the blocks.
        loop: how long it goes on, and what it keeps on the way.
        others: checkpoints that the method reads besides the base, by what to call them.
    """

    verb: str
    base: str
    checkpoint: Checkpoint
    plan: LayerPlan
    data: str | ExampleSet
    settings: CourseSettings
    loop: Loop
    loading: LoadSettings
    others: Mapping[str, Checkpoint] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        verb: str,
        base: str,
        data: str | ExampleSet,
        *,
        settings: CourseSettings,
        loop: Loop,
        loading: LoadSettings,
    ) -> Course:
        """Check what is cheap to find wrong.

        Raises:
            MidblockError: a base, a plan or a reference that cannot be used, or a way of launching that is not known.
        """
        if loading.device_map is not None:
            raise MidblockError("training takes no device map", hint="torchrun … --shard splits a model")
        refuse_deepspeed()
        check_reference(settings, base)
        checkpoint = _open_base(base, loading)
        check_takes(verb, checkpoint)
        check_vocabulary(settings, loading, checkpoint)
        others = method_of(settings).opens(settings, loading)
        plan = _read_plan(settings.layers, checkpoint)
        DepthRates.of(settings.lr_by_depth, plan.total)
        return cls(
            verb=verb,
            base=base,
            checkpoint=checkpoint,
            plan=plan,
            data=data,
            settings=settings,
            loop=loop,
            loading=loading,
            others=others,
        )

    def draft(self) -> Draft:
        """The request, as far as it is known before data and weights are read."""
        named = {"data": self.data} if isinstance(self.data, str) else {}
        config = {"base": self.base, **named, **as_config(self.settings, self.loading)}
        del config["device_map"]  # there is none
        return Draft(Request(self.verb, config, sources=self._sources()))

    def inputs(self, examples: TrainingExamples) -> dict[str, Any]:
        """What must be the same for a run to be resumed."""
        return {
            DATA: examples.facts["content_hash"],
            BASE_WEIGHTS: self.checkpoint.weight_hash(),
            **{weights_of(name): other.weight_hash() for name, other in self.others.items()},
            "the number of processes": world_size(),
        }

    def _sources(self) -> tuple[Path, ...]:
        layers = self.settings.layers
        analysed = (Path(layers.removeprefix(FROM_RUN)),) if layers.startswith(FROM_RUN) else ()
        others = [place for other in self.others.values() for place in other.places]
        models = (*self.checkpoint.places, *others, *reference_places(self.settings, self.loading))
        return (*models, *local_places(self.data), *analysed)


def _open_base(base: str, loading: LoadSettings) -> Checkpoint:
    checkpoint = open_checkpoint(base, allow_pickle=loading.allow_pickle, trust_remote_code=loading.trust_remote_code)
    if checkpoint.adapter is not None:
        raise MidblockError(f"{base} is an adapter", hint="midblock export --to merged, then tune that")
    if checkpoint.carriers:
        raise MidblockError(f"{base} is a carrier on its base", hint=f"{APPLIED}, then tune that")
    return checkpoint


def _read_plan(text: str, checkpoint: Checkpoint) -> LayerPlan:
    config: Any = checkpoint.config
    total = config.get_text_config().num_hidden_layers
    if text.startswith(FROM_RUN):
        return plan_from_run(text.removeprefix(FROM_RUN), total)
    return LayerPlan.parse(text, total)
