"""The door: `midblock VERB [ARGS] [--config FILE.yaml]`. Parsing and printing only; each verb is a Python function."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import cyclopts

from midblock import __version__
from midblock.base.errors import MidblockError, unknown
from midblock.runs.verbs import VERBS, Verb

DONE, USER_CAN_FIX = 0, 2  # 1 is Python's own, for a bug of ours

EPILOGUE = (
    "Every verb reads options from a file with --config FILE.yaml. In the options' texts P1 is arXiv 2604.11838 and P2 "
    "arXiv 2605.10973."
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
        suppress_keyboard_interrupt=False,
        help_epilogue=EPILOGUE,
    )
    for name, verb in VERBS.items():
        app.command(f"midblock.cli.{name}:{name}", name=name, help=verb.purpose)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; return 0 when done, 1 for a bug of ours, 2 for what the user can fix."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    app = door()
    verb: Verb | None = None
    try:
        arguments, config = _take_config(arguments)
        if arguments and not arguments[0].startswith("-"):
            if arguments[0] not in VERBS:
                raise unknown("verb", arguments[0], VERBS)
            verb = VERBS[arguments[0]]
        app.config = () if config is None else (_yaml(config, verb.plans if verb else ()),)
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except MidblockError as error:
        return _fail(str(error))
    except cyclopts.CycloptsError as error:
        return _fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        goes_on = "; the same command with --resume goes on from here" if verb and verb.resumable else ""
        return _fail(f"stopped{goes_on}", code=130)
    return DONE


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


def _yaml(path: Path, plans: Sequence[str]) -> cyclopts.config.Yaml:
    """The file's options, checked as far as the parser does not; `plans` are those that take a plan of layers."""
    import yaml

    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise MidblockError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise MidblockError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict):
        raise MidblockError(f"{path} holds no settings", hint="a line each, like `num_samples: 200`")
    strays = [key for key in loaded if not isinstance(key, str) or isinstance(loaded[key], dict)]
    if strays:
        raise MidblockError(f"{path}: {strays[0]!r} is no option", hint="a line each, like `num_samples: 200`")
    for key in plans:
        if isinstance(plan := loaded.get(key, ""), int | float):
            # YAML reads 01100 as an octal number and 00010 as 8, which would be a plan too
            raise MidblockError(f"{path}: {key} is the number {plan}", hint=f'put the plan in quotes: {key}: "01100"')
    return cyclopts.config.Yaml(path, use_commands_as_keys=False, allow_unknown=False, must_exist=True)


def _fail(message: str, code: int = USER_CAN_FIX) -> int:
    print(f"midblock: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
