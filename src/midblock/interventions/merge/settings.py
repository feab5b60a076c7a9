"""What a merge can be asked for: every option once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from midblock.base import MidblockError, unknown
from midblock.base.depth_list import INTERPOLATIONS, per_block, read_numbers
from midblock.interventions.merge.alphas import Alphas, read_overrides

DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True, kw_only=True)
class MergeSettings:
    """Options of `midblock merge` that decide its weights.

    Raises:
        MidblockError: a value out of range or an unknown name.
    """

    interpolation: str = "gradient"
    """Fewer alphas than blocks: `gradient` (linear, as mergekit) or `segments` (equal depth segments, constant)."""

    embedding_alpha: float | None = None
    """Alpha of the embedding, and of a head tied to it; the first block's when left out."""

    head_alpha: float | None = None
    """Alpha of the head and the final norm; the last block's when left out."""

    module_alphas: tuple[str, ...] = ()
    """Alphas of one module in all blocks, like `mlp=0,1`: `attention`, `mlp`, `norm`, or a role such as `q_proj`."""

    dtype: str = "auto"
    """Of the weights written: `float32`, `bfloat16`, `float16`; `auto` keeps the base's own."""

    allow_pickle: bool = False
    """Read pickled weights where there are no safetensors. A pickle from a stranger can run code."""

    trust_remote_code: bool = False
    """Copy and, for config and tokenizer, run code that a checkpoint ships."""

    weight_hashes: bool = False
    """Record both parents' weights as SHA-256; reads them a second time."""

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise unknown("interpolation", self.interpolation, INTERPOLATIONS)
        if self.dtype not in DTYPES:
            raise unknown("dtype", self.dtype, DTYPES)
        for name in ("embedding_alpha", "head_alpha"):
            if (given := getattr(self, name)) is not None:
                read_numbers(given, name)
        read_overrides(self.module_alphas)

    def alphas(self, numbers: tuple[float, ...], blocks: int, *, tied: bool) -> Alphas:
        """Spread `numbers` and the overrides over a model of `blocks` blocks.

        Args:
            tied: the head is the embedding.

        Raises:
            MidblockError: more numbers than blocks, or two alphas for one tied tensor.
        """
        spread = per_block(numbers, blocks, self.interpolation)
        embedding = spread[0] if self.embedding_alpha is None else float(self.embedding_alpha)
        head = spread[-1] if self.head_alpha is None else float(self.head_alpha)
        if tied and self.head_alpha is not None and head != embedding:
            what = f"the head is tied to the embedding, one tensor: it cannot take the alpha {head:g} and {embedding:g}"
            raise MidblockError(what, hint="leave out --head-alpha, or give --embedding-alpha the same")
        given = read_overrides(self.module_alphas)
        overrides = {name: per_block(values, blocks, self.interpolation) for name, values in given.items()}
        return Alphas(spread, embedding, head, overrides)


def with_texts(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments with `module_alphas` as a tuple; they may be given as a list, or as one text."""
    given = options.get("module_alphas")
    return {**options, **({"module_alphas": _as_tuple(given)} if isinstance(given, str | list) else {})}


def _as_tuple(given: str | list[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
