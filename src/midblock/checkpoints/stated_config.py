"""What a config.json states, looked at before anything is built of it: kinds of values, and counts that no model has.

A config is a stranger's word. transformers checks the kinds of most of its values, but builds as many blocks as one
says. Here are the rules that hold for every family, by what keys are called; what a family asks besides shows when its
skeleton is built, and whether the numbers are those of the weights when shapes are compared (`fitting`). Cost: none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from midblock.base import MidblockError
from midblock.base.json_file import shown

MOST = 100_000  # blocks, experts, heads or labels
LARGEST = 2**40  # of any other size

_COUNT = re.compile(
    r"(num|n)_(\w+_)?(layers?|blocks?|experts?|heads?|labels?|stages?|codebooks?|modules?)|depth|(en|de)coder_layers"
)
_AT_LEAST_ONE = re.compile(
    r"vocab_size|hidden_size|num_hidden_layers|n_layers?|n_embd|d_model|max_position_embeddings|n_positions"
)
_SIZE = re.compile(r"(^|_)(size|dim|rank|width)$|^(num|n)_|_positions?$|_embeddings$|_ctx$")
_SHARE = re.compile(r"_eps$|_epsilon$|dropout|_pdrop$")
_THETA = re.compile(r"(^|_)theta$")


def check_stated(config: Mapping[str, Any], file: Path) -> None:
    """Do nothing if a config says nothing that holds of no model.

    Raises:
        MidblockError: it does; the key, its value and what is wanted are named.
    """
    for key, value in _every(config):
        if wanted := next((wanted for fits, holds, wanted in _RULES if fits(key) and not holds(value)), None):
            raise MidblockError(f"{file}: {key} is {shown(value)}, not {wanted}", hint="fetch it again")


def check_tokenizer(config: Mapping[str, Any], file: Path) -> None:
    """Do nothing if a tokenizer_config.json holds what a tokenizer can be asked with.

    Raises:
        MidblockError: it does not; the key, its value and what is wanted are named.
    """
    for key, kinds, wanted in _TOKENIZER:
        value = config.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
            raise MidblockError(f"{file}: {key} is {shown(value)}, not {wanted}", hint="fetch it again")


def _every(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key with its value, those of configs inside too."""
    for key, value in config.items():
        yield key, value
        if isinstance(value, dict):
            yield from _every(value)


def _named(*names: str) -> Callable[[str], bool]:
    return lambda key: key in names


def _numbers(value: Any) -> list[float]:
    """The numbers that a value consists of: itself, or a list's."""
    several = value if isinstance(value, list) else [value]
    return [each for each in several if isinstance(each, int | float) and not isinstance(each, bool)]


def _within(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: all(low <= number <= high for number in _numbers(value))


def _is_theta(value: Any) -> bool:
    """Whether positions can be turned by it; in a list 0 means a block that knows none."""
    several = isinstance(value, list)
    return all((number > 0 or (several and number == 0)) and number < math.inf for number in _numbers(value))


def _is_type(value: Any) -> bool:
    if isinstance(value, str):
        return value == "auto" or isinstance(getattr(torch, value.removeprefix("torch."), None), torch.dtype)
    return value is None or isinstance(value, dict)


def _is_texts(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(each, str) for each in value))


def _are_sides(value: Any) -> bool:
    two = isinstance(value, list) and len(value) == 2
    return value is None or (two and all(type(side) is int and side > 0 for side in value))


def _is_quantisation(value: Any) -> bool:
    """Whether it names how: a method, or one of the two flags from before methods had names."""
    if not isinstance(value, dict):
        return value is None
    old = value.get("load_in_4bit") or value.get("load_in_8bit")
    method = value.get("quant_method")
    return isinstance(method, str) or (method is None and old is True)


_TOKENIZER: tuple[tuple[str, type | tuple[type, ...], str], ...] = (
    ("model_max_length", (int, float), "a number of tokens"),
    ("chat_template", (str, list, dict), "a template"),
    ("tokenizer_class", str, "the name of a class"),
    ("auto_map", dict, "an object"),
)

# of which keys, what must hold of their values, and how to say it
_RULES: tuple[tuple[Callable[[str], object], Callable[[Any], bool], str], ...] = (
    (_named("model_type"), lambda value: value is None or isinstance(value, str), "the name of a type of models"),
    (_named("dtype", "torch_dtype"), _is_type, "a type of numbers, like float32"),
    (_named("architectures"), _is_texts, "a list of names"),
    (_named("quantization_config"), _is_quantisation, "an object with a quant_method"),
    (_named("weight_block_size"), _are_sides, "two whole numbers from 1 on"),
    (_named("text_config"), lambda value: value is None or isinstance(value, dict), "an object"),
    (_AT_LEAST_ONE.fullmatch, _within(1, LARGEST), "a whole number from 1 on"),
    (_COUNT.fullmatch, _within(0, MOST), f"a number from 0 to {MOST:,}"),
    (_SIZE.search, _within(-LARGEST, LARGEST), f"a number up to {LARGEST:,}"),
    (_SHARE.search, _within(0, 1), "a number from 0 to 1"),
    (_THETA.search, _is_theta, "a number above 0"),
)
