"""Quantised weights, read as the numbers that they stand for: codes times scales, one tensor at a time.

A file may hold a weight as codes of a byte or less and, under another name, in any shard, what they are multiplied by.
Codes are no weights, so they are never handed out: where codes and scales are of a kind that is certain, the weight is
multiplied out when it is read (float32); where they are not, `EffectiveTensors.unreadable` names the tensor.

- float8 (DeepSeek, compressed-tensors, FBGEMM): `weight` beside `weight_scale_inv`, `weight_scale` or `scale`, a number
  for all, for each row, column or block;
- int8 (compressed-tensors): `weight` beside `weight_scale`, for all or each row, and no zero point;
- int8 (bitsandbytes): `weight` beside `SCB`, 127 times the scale of each row;
- mxfp4 (gpt-oss): `NAME_blocks` beside `NAME_scales`, an exponent for 32 entries.

Cost: the header; reading a tensor, its float32 copy. Sources: `transformers.integrations.finegrained_fp8` and
`.mxfp4`, `compressed_tensors`' and `bitsandbytes`' formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from midblock.checkpoints.tensors import TensorReader

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
BLOCK = 128  # the side of float8 blocks where no config says otherwise, as DeepSeek made them
SCALES = ("_scale_inv", "_scale")
BESIDE = (".k_scale", ".v_scale", ".q_scale")  # of a quantised cache, in modules that hold no weight


@dataclass(frozen=True)
class Codes:
    """A weight that is stored as codes.

    Attributes:
        kind: how notes call them.
        stored: the codes' name on disk.
        scale: the scale's name on disk.
        shape: of the weight.
        block: how many rows and columns share a number of the scale; (0, 0) of mxfp4.
        unit: what the scale is multiplied by itself.
    """

    kind: str
    stored: str
    scale: str
    shape: tuple[int, ...]
    block: tuple[int, int] = (0, 0)
    unit: float = 1.0


@dataclass(frozen=True)
class DequantisedTensors:
    """A reader's tensors with every weight that is known by its codes in their place; the scales are not named.

    Attributes:
        reader: of the files.
        coded: the weights that are stored as codes, by name.
    """

    reader: TensorReader
    coded: Mapping[str, Codes]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of weights and of what is stored as it is, in the order of the files."""
        by_codes = {codes.stored: name for name, codes in self.coded.items()}
        scales = {codes.scale for codes in self.coded.values()}
        modules = {name.rpartition(".")[0] for name in self.coded if name.endswith(".weight")}
        found = []
        for name in self.reader.names:
            path, _, own = name.rpartition(".")
            helper = name in scales or name.endswith(BESIDE) or (path in modules and own not in ("weight", "bias"))
            if name in by_codes or not helper:
                found.append(by_codes.get(name, name))
        return tuple(found)

    @cached_property
    def meant(self) -> torch.dtype:
        """The type that codes stand for: that of most entries which are stored as they are; else bfloat16."""
        sizes: dict[torch.dtype, int] = {}
        for name in self.names:
            kind = self.reader.dtype(name) if name not in self.coded else torch.int8
            if kind.is_floating_point and kind.itemsize > 1:
                sizes[kind] = sizes.get(kind, 0) + self.reader.nbytes(name) // kind.itemsize
        return max(sizes, key=lambda kind: sizes[kind], default=torch.bfloat16)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.coded[name].shape if name in self.coded else self.reader.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """The type to write it in."""
        return self.meant if name in self.coded else self.reader.dtype(name)

    def file(self, name: str) -> Path:
        """The file that holds the tensor, or its codes."""
        return self.reader.file(self.coded[name].stored if name in self.coded else name)

    def read(self, name: str) -> Shaped[Tensor, "*shape"]:
        """Return one tensor; a weight of codes as a float32 tensor of its own, of mxfp4 bfloat16, which is exact."""
        if name not in self.coded:
            return self.reader.read(name)
        codes = self.coded[name]
        scale = self.reader.read(codes.scale).clone()
        stored = self.reader.read(codes.stored)
        return _unpacked(stored, scale) if codes.kind == "mxfp4" else _scaled(stored, scale, codes)

    def release(self, name: str) -> None:
        """Give the pages of a tensor back to the system."""
        self.reader.release(self.coded[name].stored if name in self.coded else name)

    def close(self) -> None:
        self.reader.close()

    def __contains__(self, name: object) -> bool:
        return name in self.coded or name in self.reader

    def __enter__(self) -> DequantisedTensors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def dequantised(reader: TensorReader, config: Any = None) -> TensorReader | DequantisedTensors:
    """Read what codes stand for, where it is certain; the reader itself where nothing is stored so.

    Args:
        config: the model's, whose `quantization_config` may say how wide the blocks of a float8 weight are.
    """
    blocks = _asked_blocks(config)
    found = (_codes(reader, name, blocks) for name in reader.names)
    coded = {name: codes for each in found if each is not None for name, codes in (each,)}
    return DequantisedTensors(reader, coded) if coded else reader


def _asked_blocks(config: Any) -> tuple[int, int] | None:
    asked = getattr(config, "quantization_config", None)
    asked = asked if isinstance(asked, Mapping) else getattr(asked, "__dict__", {})
    sides = asked.get("weight_block_size")
    return (int(sides[0]), int(sides[1])) if isinstance(sides, list | tuple) and len(sides) == 2 else None


def _codes(reader: TensorReader, name: str, blocks: tuple[int, int] | None) -> tuple[str, Codes] | None:
    """The weight that a tensor holds the codes of, if it is a kind that is certain."""
    kind, shape = reader.dtype(name), reader.shape(name)
    if kind == torch.uint8 and name.endswith("_blocks"):
        return _mxfp4(reader, name)
    if len(shape) < 2 or (kind not in FLOAT8 and kind != torch.int8) or f"{name}_zero_point" in reader:
        return None
    called = str(kind).removeprefix("torch.")
    bare = name.removesuffix(".weight")
    if kind == torch.int8 and f"{bare}.SCB" in reader:
        return name, Codes(called, name, f"{bare}.SCB", shape, (1, shape[-1]), 1 / 127)
    given = [f"{name}{end}" for end in SCALES] + ([f"{bare}.scale"] if bare != name else [])
    scales = [scale for scale in given if scale in reader]
    scales = scales if len(scales) == 1 and _is_scale(reader.dtype(scales[0])) else []
    sides = _blocks(shape, reader.shape(scales[0]), blocks) if scales else None
    if sides is None or (kind == torch.int8 and not (name + "_scale" in scales and sides[1] == shape[-1])):
        return None
    return name, Codes(called, name, scales[0], shape, sides)


def _mxfp4(reader: TensorReader, name: str) -> tuple[str, Codes] | None:
    """gpt-oss' experts: blocks (experts, rows, groups, 16 bytes), a scale each; the weight is (experts, in, out)."""
    weight, shape = name.removesuffix("_blocks"), reader.shape(name)
    scale = f"{weight}_scales"
    if scale not in reader or len(shape) != 4 or reader.shape(scale) != shape[:3] or shape[3] != 16:
        return None
    return weight, Codes("mxfp4", name, scale, (shape[0], shape[2] * 32, shape[1]))


def _blocks(shape: tuple[int, ...], scale: tuple[int, ...], asked: tuple[int, int] | None) -> tuple[int, int] | None:
    """How many rows and columns share a number of a scale; None where its shape leaves that open."""
    rows, columns = shape[-2:]
    if all(side == 1 for side in scale):
        return rows, columns
    if scale == (rows,):
        return 1, columns
    if len(scale) != len(shape) or any(side not in (1, own) for side, own in zip(scale[:-2], shape[:-2], strict=True)):
        return None
    given = asked or (BLOCK, BLOCK)
    sides = tuple(map(_side, (rows, columns), scale[-2:], given))
    return (sides[0], sides[1]) if sides[0] and sides[1] else None


def _side(entries: int, numbers: int, asked: int) -> int:
    """How many entries share a number along one side; 0 where that is open."""
    if numbers in (1, entries):
        return entries // numbers
    if -(-entries // asked) == numbers:
        return asked
    return 0 if entries % numbers else entries // numbers


def _scaled(
    stored: Shaped[Tensor, "*shape"], scale: Shaped[Tensor, "*sides"], codes: Codes
) -> Float32[Tensor, "*shape"]:
    """Codes times their scale, block by block."""
    made, (rows, columns) = stored.float(), codes.block
    numbers = _as_float(scale) * codes.unit
    if numbers.numel() == 1:
        return made.mul_(numbers.reshape(()))
    if numbers.ndim == 1:
        numbers = numbers[:, None]
    numbers = numbers.repeat_interleave(rows, -2)[..., : stored.shape[-2], :]
    for block, start in enumerate(range(0, stored.shape[-1], columns)):
        made[..., start : start + columns].mul_(numbers[..., block : block + 1])
    return made


def _is_scale(kind: torch.dtype) -> bool:
    """Whether a type holds scales: numbers, or exponents in a byte."""
    return kind.is_floating_point or kind == torch.uint8


def _as_float(scale: Shaped[Tensor, "*sides"]) -> Float32[Tensor, "*sides"]:
    """A scale as numbers: bytes are exponents of 2 with an offset of 127."""
    return (scale.float() - 127).exp2() if scale.dtype == torch.uint8 else scale.float()


def _unpacked(
    blocks: Shaped[Tensor, "experts rows groups 16"], scales: Shaped[Tensor, "experts rows groups"]
) -> Float[Tensor, "experts columns rows"]:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    return convert_moe_packed_tensors(blocks, scales)
