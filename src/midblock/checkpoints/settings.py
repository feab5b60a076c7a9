"""How a checkpoint is loaded: every option once, named as in transformers."""

from __future__ import annotations

from dataclasses import dataclass

from midblock.base import MidblockError, from_options, unknown
from midblock.base.files import read_size

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """Options of every verb that loads models.

    Raises:
        MidblockError: an unknown dtype, or a size that is none.
    """

    dtype: str = "auto"
    """`float32`, `bfloat16`, `float16`, `float64`; `auto` is float32 on the CPU, else the checkpoint's own."""

    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, `mps`, …; `auto` takes the accelerator if there is one."""

    device_map: str | None = None
    """accelerate's device map (`auto`, `balanced`, …), for models wider than one device; overrides `device`."""

    attn_implementation: str | None = None
    """`sdpa`, `eager`, `flash_attention_2`, …; the model's default when left out."""

    max_memory: str | None = None
    """`4GB`, `500MB`: analyze, probe or swap block by block within so much memory; so by itself where it is short."""

    allow_pickle: bool = False
    """Read pickled weights where there are no safetensors. A pickle from a stranger can run code."""

    trust_remote_code: bool = False
    """Run code that a checkpoint ships."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise unknown("dtype", self.dtype, DTYPES)
        if self.device_map is not None and self.device != "auto":
            raise MidblockError("device and device_map exclude each other")
        if self.max_memory is not None:
            read_size(self.max_memory)
            if self.device_map is not None:
                raise MidblockError("max_memory and device_map exclude each other")

    @classmethod
    def of(cls, options: dict[str, object]) -> LoadSettings:
        """Build the settings from keyword arguments.

        Raises:
            MidblockError: an unknown keyword; the nearest is named.
        """
        return from_options(cls, options)
