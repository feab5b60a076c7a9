"""A YAML file of settings, read within limits and without surprises.

YAML means more than it seems to: 010 is eight, 1:30 is ninety, 2020-01-01 a date, an alias may grow a kilobyte into
gigabytes, of a key said twice the last counts. Here a file holds text, numbers, yes and no, lists and mappings, each
said once, and everything else is told.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from midblock.base.errors import MidblockError
from midblock.base.json_file import shown
from midblock.base.plain_file import read_bytes

LARGEST = 300_000  # bytes
MOST = 10_000  # values, those behind aliases counted each time
TAG = "tag:yaml.org,2002:"
TAGS = {f"{TAG}{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}
WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]{0,39})")
HINT = "a line each, like `num_samples: 200`"


def read_settings(file: Path) -> dict[str, Any]:
    """Read a file that holds one mapping, its keys text.

    Raises:
        MidblockError: it cannot be read, is no UTF-8 or no YAML, holds something else, or what YAML takes for
            something else than it looks like; the message names the file.
    """
    content = read_bytes(file, LARGEST)
    try:
        node = yaml.compose(content.decode("utf-8-sig"), Loader=yaml.SafeLoader)
        if node is not None:
            _check(node, file)
        found = None if node is None else yaml.constructor.SafeConstructor().construct_document(node)
    except RecursionError as error:
        raise MidblockError(f"{file} is no YAML: it is nested too deep") from error
    except (yaml.YAMLError, ValueError) as error:
        raise MidblockError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise MidblockError(f"{file} holds no settings", hint=HINT)
    return found


def check_quoted(where: str | Path, key: str, value: Any) -> None:
    """Raise MidblockError for a plan of layers that is no text any more.

    Args:
        where: the file, or the place in it.
    """
    if isinstance(value, int | float):
        # YAML reads 01100 as an octal number and 00010 as 8, which would be a plan too
        raise MidblockError(f"{where}: {key} is the number {value}", hint=f'put the plan in quotes: {key}: "01100"')


def _check(node: yaml.Node, file: Path) -> None:
    """Look at every value as it is written; without recursion, so that what holds itself comes to an end."""
    waiting, count = [node], 0
    while waiting:
        each, count = waiting.pop(), count + 1
        if count > MOST:
            raise MidblockError(f"{file} holds more than {MOST:,} values", hint="is it the file that was meant?")
        _check_tag(each, file)
        if isinstance(each, yaml.MappingNode):
            _check_keys(each, file)
            waiting += [value for _, value in each.value]
        elif isinstance(each, yaml.SequenceNode):
            waiting += each.value


def _check_keys(node: yaml.MappingNode, file: Path) -> None:
    known: set[str] = set()
    for key, _ in node.value:
        if key.tag != f"{TAG}str":
            raise MidblockError(f"{_line(file, key)}: {shown(_said(key))} is no option", hint=HINT)
        if key.value in known:
            raise MidblockError(f"{_line(file, key)} says {shown(key.value)} a second time")
        known.add(key.value)


def _check_tag(node: yaml.Node, file: Path) -> None:
    """Whether it is of a kind that settings have, and a number written as people write it."""
    odd = isinstance(node, yaml.ScalarNode) and (
        (node.tag == f"{TAG}int" and not WHOLE.fullmatch(node.value))
        or (node.tag == f"{TAG}float" and ":" in node.value)
    )
    if node.tag not in TAGS or odd:
        kind = "a number of another base, or one too long" if node.tag in TAGS else node.tag.removeprefix(TAG)
        what = f"{_line(file, node)}: YAML takes {shown(_said(node))} for {kind}"
        raise MidblockError(what, hint="put text in quotes, and write numbers plainly")


def _said(node: yaml.Node) -> str:
    return node.value if isinstance(node, yaml.ScalarNode) else "a list or mapping"


def _line(file: Path, node: yaml.Node) -> str:
    return f"{file}, line {node.start_mark.line + 1}"
