"""The order in which weights are shown: projections as data flows through a block, then sums, then the ends."""

from collections.abc import Iterable

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SUMS = ("attention", "mlp", "norm", "block")
ENDS = ("embedding", "head")


def heat_rows(modules: Iterable[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Rows of a heat map from top to bottom, each a label and the modules it shows.

    Embedding and head have one layer each, at opposite ends, so they share a row.
    """
    found = [module for module in dict.fromkeys(modules) if module != "residual"]
    others = [module for module in found if module not in {*PROJECTIONS, *SUMS, *ENDS}]
    single = [*(m for m in PROJECTIONS if m in found), *others, *(m for m in SUMS if m in found)]
    ends = tuple(module for module in ENDS if module in found)
    return [(module, (module,)) for module in single] + ([(_ends_label(ends), ends)] if ends else [])


def _ends_label(ends: tuple[str, ...]) -> str:
    return ends[0] if len(ends) == 1 else "embed / head"
