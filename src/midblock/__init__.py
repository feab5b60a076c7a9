"""See, layer by layer, what supervised fine-tuning does to a causal language model."""

from importlib import import_module
from typing import Any

from midblock.runs.verbs import VERBS

__version__ = "0.1.0"

# Heavy imports (torch, transformers) wait until a name is used, so that `midblock --help` stays instant.
_NOUNS = {
    "LayerPlan": "midblock.base",
    "LayerTable": "midblock.base",
    "MidblockError": "midblock.base",
    "Pair": "midblock.checkpoints",
    "apply_carrier": "midblock.checkpoints",
    "check_gate": "midblock.analysis",
    "load_models": "midblock.checkpoints",
    "load_pair": "midblock.checkpoints",
    "load_dataset": "midblock.data",
    "METRICS": "midblock.metrics",
    "correlate": "midblock.metrics",
    "INTERVENTIONS": "midblock.interventions",
    "LOSSES": "midblock.tuning",
    "METHODS": "midblock.tuning",
}
_HOMES = {**_NOUNS, **{verb.function or name: verb.home for name, verb in VERBS.items()}}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'midblock' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
