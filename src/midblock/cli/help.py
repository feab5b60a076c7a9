"""How cyclopts shows help and says what is wrong with a command line, in our words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from cyclopts import CycloptsError, MissingArgumentError, UnknownOptionError
from cyclopts.help import DefaultFormatter, format_usage
from cyclopts.help.specs import AsteriskColumn, ColumnSpec, DescriptionColumn, NameRenderer

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry

SHARE = 0.35  # of the width, for the options' names, where none is longer
INDENT = 2  # of a name's further lines


def formatter() -> DefaultFormatter:
    """Options in a column that breaks no name, so that it can be copied."""
    return DefaultFormatter(column_specs=_columns)


def _columns(console: Any, options: Any, entries: list[HelpEntry]) -> tuple[Any, ...]:
    words = (word for entry in entries for label in entry.display_labels_with_metavar for word in label.split())
    width = max(math.ceil(console.width * SHARE), max(map(len, words), default=0) + INDENT)
    names = ColumnSpec(NameRenderer(max_width=width), header="Option", style="cyclopts.name", max_width=width)
    marked = (AsteriskColumn,) if any(entry.required for entry in entries) else ()
    return (*marked, names, DescriptionColumn)


def refused(error: CycloptsError) -> str:
    """What is wrong with a command line, and what to try."""
    said = str(error)
    if isinstance(error, MissingArgumentError) and error.argument is not None and error.app is not None:
        usage = " ".join(str(format_usage(error.app, ())).split())
        return f"{_missing(error, error.argument)} (usage: midblock {usage})"
    if isinstance(error, UnknownOptionError) and error.command_chain and "Did you mean" not in said:
        return f"{said} `midblock {' '.join(error.command_chain)} --help` lists what there is."
    return said


def _missing(error: MissingArgumentError, argument: Any) -> str:
    """As the usage line calls it: an option that was given lacks its value, any other is not there at all."""
    given = error.keyword or next((token.keyword for token in argument.tokens if token.keyword), None)
    if given is not None:
        return f"{given} wants a value"
    called = argument.name if argument.field_info.is_keyword_only else argument.name.lstrip("-").upper()
    return f"{called} is missing"
