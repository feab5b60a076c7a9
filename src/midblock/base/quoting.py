"""Text of unknown origin put into another language, in which it must stay text: one function a language.

Names of folders, models and data, and values of a stranger's files, go into programs, cards, spreadsheets and onto the
terminal. YAML and JSON are written by their own libraries, shell lines by `shlex`; what those do not cover is here.
"""

from __future__ import annotations

import ast
import json
import keyword
import pprint
import re
import unicodedata
from collections.abc import Mapping
from pathlib import PureWindowsPath
from typing import Any

from midblock.base.errors import MidblockError

JOINERS = "\u200c\u200d"  # of scripts and emoji; they move nothing
# how spreadsheets know a formula (the last four are full-width = + - @), behind our own apostrophes
FORMULA = re.compile("'*[=+@\t\r\n\uff1d\uff0b\uff0d\uff20-]")
UNFIT_FOR_XML = re.compile("[\ud800-\udfff\ufffe\uffff]")  # beside control characters, which nothing shows
MARKUP = re.compile(r"[\\`*\[\]<>&|~$]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")
REFERENCE = re.compile(
    r"((?:--?[\w-]+=)?(?:file://|[a-z]{2,}:(?!//))?)(.*)", re.DOTALL
)  # what is before a path, the path


def printable(text: object) -> str:
    """Text for one line of a terminal, a log or a table.

    Control characters, line ends, marks of writing direction and other invisible ones, and bytes that are no text are
    shown as Python escapes them (`\\x1b`, `\\n`, `\\u202e`), so that nothing moves the cursor, colours what follows or
    reads otherwise than it is.
    """
    return "".join(each if _shows(each) else each.encode("unicode_escape").decode() for each in str(text))


def printable_lines(text: str) -> str:
    """The same for text of several lines, which stay lines."""
    return "\n".join(map(printable, text.replace("\r\n", "\n").expandtabs(4).split("\n")))


def python_literal(value: Any, what: str) -> str:
    """A plain value as Python source that reads back as just this value.

    Args:
        value: text, numbers, truth values, None, and lists, tuples and mappings of them.
        what: what it is and where it stands, for the error.

    Raises:
        MidblockError: it is something else, or a number that is not finite.
    """
    try:
        text = pprint.pformat(value, width=100, sort_dicts=False)
        if ast.literal_eval(text) == value:
            return text
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        pass
    raise MidblockError(f"{printable(what)} is no plain value, so it is written into no program")


def python_arguments(values: Mapping[str, Any], what: str, indent: int = 4) -> str:
    """Keyword arguments of a call as Python source, one a line.

    Args:
        what: where the values stand, for the error.
        indent: spaces before each line.

    Raises:
        MidblockError: a name that is no name of an argument, or a value that is not plain.
    """
    lines = []
    for name, value in values.items():
        if not is_argument(name):
            raise MidblockError(f"{printable(what)}: {name!r} is no name of an option", hint="take it out")
        lines += f"{name}={python_literal(value, f'{what}: {name}')},".splitlines()
    return "".join(f"{' ' * indent}{line}\n" for line in lines)


def python_docstring(text: str) -> str:
    """Text inside the three double quotes of a docstring."""
    return json.dumps(printable(text), ensure_ascii=False)[1:-1]


def is_argument(name: object) -> bool:
    """Whether a name can be a keyword argument's, spelled in one way only."""
    return isinstance(name, str) and name.isascii() and name.isidentifier() and not keyword.iskeyword(name)


def markdown_text(text: object) -> str:
    """Text inside a line of Markdown or a table's cell: no markup, no HTML, no new line."""
    return MARKUP.sub(r"\\\g<0>", printable(text))


def markdown_code(text: str) -> str:
    """A block of code in Markdown, between fences that the text does not hold."""
    runs = re.findall("`+", text)
    fence = "`" * max(3, 1 + max(map(len, runs), default=0))
    return f"{fence}\n{printable_lines(text)}\n{fence}"


def xml_text(text: object) -> str:
    """Text for XML, whose writer escapes its markup: without the letters that no XML can hold."""
    return UNFIT_FOR_XML.sub(lambda found: found[0].encode("unicode_escape").decode(), printable(text))


def cell(text: str) -> str:
    """Text for a cell of a CSV file: an apostrophe before what a spreadsheet would take for a formula."""
    return f"'{text}" if FORMULA.match(text) else text


def cell_text(cell: str) -> str:
    """What `cell` was given."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def without_places(text: str) -> str:
    """A reference, or a word of a command, without the folders of this machine: of a path the last part is left.

    Paths relative to where the command ran stay, unless they climb; so do names of the hub and addresses.
    """
    found = REFERENCE.fullmatch(text)
    before, path = (found[1], found[2]) if found else ("", text)
    parts = PureWindowsPath(path)  # which knows both separators
    placed = path.startswith(("/", "\\", "~")) or parts.is_absolute() or ".." in parts.parts
    return f"{before}{parts.name or path}" if placed else text


def _shows(character: str) -> bool:
    return character in JOINERS or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
