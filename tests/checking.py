"""Every annotation of midblock is checked whenever it is called: types by beartype, shapes by jaxtyping.

jaxtyping binds each call's arguments anew to know what its letters stand for, which costs more than all else that the
tests do. So only what names a shape goes through it; every other function and dataclass through beartype alone.
"""

import dataclasses
import inspect
import sys
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf, beartype

# PEP 484 lets an int stand for a float; beartype wants to be told so. What it finds is a TypeError, as to jaxtyping.
check_types = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=jaxtyping.TypeCheckError))
check_shapes = jaxtyping.jaxtyped


def install(package: str) -> None:
    """Check whatever is imported from a package from now on."""
    name = f"{package}_typechecker"  # jaxtyping wants its checker as an importable name
    checker: Any = ModuleType(name)
    checker.check, sys.modules[name] = check_types, checker
    jaxtyping.jaxtyped = checked  # what its hook puts on every function and every class
    jaxtyping.install_import_hook(package, f"{name}.check")


def checked(*, typechecker: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A decorator as `jaxtyped` is one, for functions and for dataclasses."""

    def decorate(it: Any) -> Any:
        if not inspect.isclass(it):
            return check(it, typechecker)
        if dataclasses.is_dataclass(it) and "__init__" in vars(it):
            it.__init__ = check(it.__init__, typechecker)
        return it

    return decorate


def check(function: FunctionType, typechecker: Callable[[Any], Any]) -> Callable[..., Any]:
    """Check a function's calls; its annotations stay as they are written."""
    hints = {name: as_type(hint, function.__globals__) for name, hint in function.__annotations__.items()}
    if any(map(is_shaped, hints.values())):
        return check_shapes(function, typechecker=typechecker)
    own, function.__annotations__ = function.__annotations__, hints
    made = check_types(function)
    function.__annotations__ = made.__annotations__ = own
    return made


def as_type(hint: Any, names: dict[str, Any]) -> Any:
    """An annotation as a type; a name that is not known yet, or only to mypy, is anything, as it is to jaxtyping."""
    try:
        return eval(hint, names) if isinstance(hint, str) else hint  # noqa: S307
    except NameError:
        return Any


def is_shaped(hint: Any) -> bool:
    """Whether a type, or one that it is made of, is an array's of some shape."""
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(is_shaped, hint if isinstance(hint, list) else get_args(hint)))
