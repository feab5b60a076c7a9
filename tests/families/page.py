"""docs/families.md, made of the expected outcomes."""

from collections.abc import Iterator, Mapping, Sequence
from textwrap import fill

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .cells import CELLS
from .outcome import WORKS
from .wrappers import WRAPPERS
from .zoo import NO_DECODERS, nested

Table = Mapping[str, Mapping[str, str]]
VERBS = {
    "analyze": "`analyze` (states)",
    "by blocks": "`analyze --max-memory`",
    "weights": "`analyze --weights-only`",
    "probe": "`probe`",
    "swap": "`swap`",
    "merge": "`merge`",
    "tune": "`tune`",
    "tune full": "`tune --method full`",
    "carve": "`carve`",
}
HEAD = """# Families

What midblock does with each decoder family of transformers, by its `model_type`. Every line is tested, on a pico model
with random weights on which every path matters: each number of midblock's is compared with the one that transformers'
own forward pass, or PEFT's, gives (`tests/families`). *Works* means: states at every depth, the change of every block's
weights, predictions at the last depth, one block exchanged, the mean of two checkpoints, and a step of tuning with
adapters and with own weights, read again, are right, and masks over channels choose each entry of every weight.
*Refused* means that midblock says so in one line and stops; it does not give a number that it does not know to be
right. What follows a colon is a variant of the family's wiring.

This page is written by the tests: `MIDBLOCK_WRITE_FAMILIES=1 pytest tests/families`.
"""


def page(table: Table) -> str:
    """The whole page."""
    single = {name: cells for name, cells in table.items() if name not in WRAPPERS}
    both = {name: cells for name, cells in table.items() if name in WRAPPERS}
    whole = [name for name, cells in single.items() if works(cells) == len(CELLS)]
    parts = [
        HEAD,
        f"## All of it works\n\n{fill(', '.join(f'`{name}`' for name in whole), 120, break_on_hyphens=False)}.\n",
        "## Some of it is refused\n",
        "\n".join(_rows(single)) + "\n",
        "## Multimodal models\n\nmidblock works on the text decoder; towers stay as they are, to the bit.\n",
        "\n".join(_rows(both, all_of_them=True)) + "\n",
        "## Not tried\n",
        "\n".join(_left_out()) + "\n",
    ]
    return "\n".join(parts)


def works(cells: Mapping[str, str]) -> int:
    """How many of a family's cells work."""
    return sum(found == WORKS for found in cells.values())


def _rows(table: Table, all_of_them: bool = False) -> Iterator[str]:
    yield "| Family | Works | Refused | Because |"
    yield "|---|---|---|---|"
    for name, cells in table.items():
        done = [cell for cell, found in cells.items() if found == WORKS]
        reasons = dict.fromkeys(found for found in cells.values() if found != WORKS)
        if not reasons and all_of_them:
            yield f"| `{name}` | {_named(done)} | | |"
        for place, reason in enumerate(reasons):
            refused = [cell for cell, found in cells.items() if found == reason]
            first = (f"`{name}`", _named(done) or "—") if not place else ("", "")
            yield f"| {first[0]} | {first[1]} | {_named(refused)} | {reason.replace('|', chr(92) + '|')} |"


def _named(cells: Sequence[str]) -> str:
    return "everything" if len(cells) >= len(CELLS) else ", ".join(VERBS.get(cell, cell) for cell in cells)


def _left_out() -> Iterator[str]:
    for name, reason in NO_DECODERS.items():
        yield f"- `{name}`: {reason}."
    larger = [
        name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if nested(name) and name not in {*WRAPPERS, *NO_DECODERS}
    ]
    yield f"- Multimodal models of other makes: {', '.join(f'`{name}`' for name in sorted(larger))}."
