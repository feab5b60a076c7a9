"""The door: `midblock VERB [ARGS] [--config FILE.yaml]`. Parsing and printing only; each verb is a Python function."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cyclopts

from midblock import __version__
from midblock.base.errors import GateError, MidblockError, NoSpaceError, ToldError, unknown
from midblock.base.quoting import printable
from midblock.base.yaml_file import HINT, check_quoted, read_settings
from midblock.cli.crash import crash_line
from midblock.cli.help import formatter, refused
from midblock.cli.streams import lasting
from midblock.runs.stopping import OUT_OF_TIME, STOPPING, TERMINATED, Stopped
from midblock.runs.verbs import VERBS, Verb

DONE, OUR_BUG, USER_CAN_FIX, GATE_FAILED, INTERRUPTED = 0, 1, 2, 3, 130
# What the system refuses and the user can mend; any other error of the system is ours.
REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ELOOP, errno.ENAMETOOLONG, errno.EMFILE)
STOPPED = (INTERRUPTED, TERMINATED, OUT_OF_TIME)

FIRST, LAST = 1000, 400  # letters of a line that is too long

EPILOGUE = (
    "Every verb reads options from a file with --config FILE.yaml. In the options' texts P1 is arXiv 2604.11838, P2 "
    "arXiv 2605.10973 and P3 arXiv 2605.06632."
)


def door() -> cyclopts.App:
    """The command line of every verb in the table.

    A verb's function is imported when it is called: torch alone takes longer than `--help` should.
    """
    app = cyclopts.App(
        name="midblock",
        help="See, layer by layer, what supervised fine-tuning does to a language model.",
        version=__version__,
        help_format="plaintext",
        default_parameter=cyclopts.Parameter(negative_iterable=()),  # a list that is left out is empty
        suppress_keyboard_interrupt=False,
        help_epilogue=EPILOGUE,
    )
    for name, verb in VERBS.items():
        app.command(f"midblock.cli.{name}:{name}", name=name, help=verb.purpose, help_formatter=formatter())
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    Returns:
        0 when done, 1 for a bug of ours, 2 for what the user can fix, 3 where the run is whole and does not pass its
        gate, 124 after `--max-time`, 130 after Ctrl-C, 143 after SIGTERM.
    """
    command = Command(list(sys.argv[1:] if arguments is None else arguments))
    try:
        with lasting():
            return _run(command)
    except MidblockError as error:  # what was printed could not be delivered
        with suppress(OSError):
            return _fail(str(error))
        return USER_CAN_FIX


def _run(command: Command) -> int:
    try:
        with STOPPING.heeding_signals():
            command.run()
    except NoSpaceError as error:
        return _fail(command.advised(str(error)))
    except MidblockError as error:
        return USER_CAN_FIX if isinstance(error, ToldError) and not _main_process() else _fail(str(error))
    except cyclopts.CycloptsError as error:
        return _fail(refused(error))
    except GateError as failed:
        for line in failed.lines:
            _fail(f"gate: {line}")
        return GATE_FAILED
    except KeyboardInterrupt:
        return _fail(command.advised("stopped"), code=INTERRUPTED)
    except Stopped as stopped:
        return _fail(command.advised(stopped.reason), code=stopped.code)
    except MemoryError:
        return _fail("out of memory", code=USER_CAN_FIX)
    except OSError as error:
        if error.errno in REFUSALS:
            return _fail(f"cannot read or write {error.filename or 'a file'}: {error.strerror}")
        return _fail(crash_line(error, command.arguments), code=OUR_BUG)
    except Exception as error:
        return _fail(crash_line(error, command.arguments), code=OUR_BUG)
    return DONE


@dataclass
class Command:
    """One command line.

    Attributes:
        arguments: its words.
        verb: None until it is known.
        overwrite: it replaces what is there.
        resume: it goes on with what is there.
    """

    arguments: Sequence[str]
    verb: Verb | None = None
    overwrite: bool = False
    resume: bool = False

    def run(self) -> None:
        """Parse it and call the verb.

        Raises:
            MidblockError: what the user can fix.
            CycloptsError: words that cannot be parsed.
        """
        app = door()
        words, config = _take_config(list(self.arguments))
        if words and not words[0].startswith("-"):
            if words[0] not in VERBS:
                raise unknown("verb", words[0], VERBS)
            self.verb = VERBS[words[0]]
            check_alone(words[0], self.verb)
        self.overwrite, self.resume = "--overwrite" in words, "--resume" in words
        if config is not None:
            loaded = _read_config(config, self.verb.plans if self.verb else ())
            self.overwrite |= loaded.get("overwrite") is True
            self.resume |= loaded.get("resume") is True
            app.config = (options_of(config),)
        app(words, exit_on_error=False, print_error=False, result_action="return_value")

    def advised(self, what: str) -> str:
        """What happened, and how the run goes on where it can and something of it was kept."""
        if self.verb is None or not (self.verb.resumable or self.verb.goes_on):
            return what
        if not (STOPPING.kept or self.resume):
            return what
        if self.resume or self.verb.goes_on:
            without = " without --overwrite" if self.overwrite else ""
            return f"{what}; the same command{without} goes on from here"
        instead = " instead of --overwrite" if self.overwrite else ""
        return f"{what}; the same command with --resume{instead} goes on from here"


def check_alone(name: str, verb: Verb) -> None:
    """Raise MidblockError for a verb that several processes were started for and that has work for one."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and not verb.processes:
        able = ", ".join(other for other, each in VERBS.items() if each.processes)
        what = f"{name} has work for one process, and {started} were started"
        kind = MidblockError if _main_process() else ToldError
        raise kind(what, hint=f"several share the work of {able}")


def _take_config(arguments: list[str]) -> tuple[list[str], Path | None]:
    """Take `--config FILE` out of the command line: it decides how the rest is read."""
    for position, argument in enumerate(arguments):
        if argument.startswith("--config="):
            return arguments[:position] + arguments[position + 1 :], Path(argument.partition("=")[2])
        if argument == "--config":
            if position + 1 == len(arguments):
                raise MidblockError("--config wants a YAML file")
            return arguments[:position] + arguments[position + 2 :], Path(arguments[position + 1])
    return arguments, None


def options_of(config: Path) -> cyclopts.config.Yaml:
    """A file's options, for the parser."""
    return cyclopts.config.Yaml(config, use_commands_as_keys=False, allow_unknown=False, must_exist=True)


def _read_config(path: Path, plans: Sequence[str]) -> dict[str, Any]:
    """The file's options, checked as far as the parser does not; `plans` are those that take a plan of layers."""
    loaded = read_settings(path)
    strays = [key for key in loaded if isinstance(loaded[key], dict)]
    if strays:
        raise MidblockError(f"{path}: {strays[0]!r} is no option", hint=HINT)
    for key in plans:
        check_quoted(path, key, loaded.get(key, ""))
    return loaded


def _fail(message: str, code: int = USER_CAN_FIX) -> int:
    """Say what is wrong on one line; of several processes only the main one speaks of what befell all of them."""
    if code not in STOPPED or _main_process():
        print(printable(f"midblock: {_shortened(' '.join(message.split()))}"), file=sys.stderr)
    return code


def _main_process() -> bool:
    """As `runs.processes`, which the door cannot wait for."""
    return os.environ.get("RANK", "0") == "0"


def _shortened(line: str) -> str:
    """A line that quotes text without end, without its middle: what is wrong stands first, what to try last."""
    return line if len(line) <= FIRST + LAST else f"{line[:FIRST]} … {line[-LAST:]}"


if __name__ == "__main__":
    sys.exit(main())
