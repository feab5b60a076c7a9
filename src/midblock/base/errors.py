"""The one exception a user is meant to read, and the nearest-name suggestion it often carries."""

import difflib
from collections.abc import Iterable, Sequence

MANY, FEW = 24, 4  # names: up to so many are all listed, of more so few


class MidblockError(Exception):
    """A problem the user can fix: what is wrong, where, and what to try, on one line.

    The command line prints the message and exits with code 2; any other exception is a bug of ours.
    """

    def __init__(self, what: str, *, hint: str | None = None) -> None:
        self.what = what
        self.hint = hint
        super().__init__(f"{what} ({hint})" if hint else what)


class NoSpaceError(MidblockError):
    """The disk is full."""


class ToldError(MidblockError):
    """One that another process of the same run met and tells of."""


class GateError(Exception):
    """A whole run shows what its gate forbids: the command line prints a line a condition and exits with code 3."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = tuple(lines)
        super().__init__("; ".join(lines))


def nearest(name: str, options: Iterable[str]) -> str | None:
    """Return the option spelled most like `name`, or the shortest that contains it; None when nothing comes close."""
    by_lower = {option.lower(): option for option in options}
    holding = [option for option in by_lower if len(name) > 3 and name.lower() in option]
    if holding:
        return by_lower[min(holding, key=len)]
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[close[0]] if close else None


def unknown(kind: str, name: str, options: Iterable[str], *, listed: str | None = None) -> MidblockError:
    """Build the error for a name that is not among `options`.

    Args:
        kind: what is being named, as the user would call it ("metric", "option", "column").
        name: what the user wrote.
        options: everything that would have been accepted.
        listed: where they are listed, for those that are many.

    Returns:
        The error, to be raised by the caller; it names the nearest option, or all of them, or of many the
        nearest few.
    """
    options = sorted(options)
    what = f"unknown {kind} {name!r}" if name.strip() else f"the name of the {kind} is empty"
    if close := nearest(name, options):
        return MidblockError(what, hint=f"did you mean {close!r}?")
    if len(options) <= MANY:
        return MidblockError(what, hint="one of: " + ", ".join(options))
    few = difflib.get_close_matches(name, options, n=FEW, cutoff=0.0) if name.strip() else options[:FEW]
    more = f"; {listed} lists all {len(options)}" if listed else f"; there are {len(options)}"
    return MidblockError(what, hint=f"such as {', '.join(few)}{more}")
