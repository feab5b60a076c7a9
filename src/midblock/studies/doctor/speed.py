"""A short measurement of this machine: a few blocks of the model's own kind on a batch of the run's own shape, a file.

The blocks are the model's architecture with numbers drawn by chance and a small vocabulary: how fast they are does not
depend on either, and none of the model's weights are read. Cost: memory of a few blocks, a few seconds.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, Checkpoint, quiet_transformers
from midblock.checkpoints.config import STRANGE, reason_of
from midblock.checkpoints.fitting import EXPERTS
from midblock.checkpoints.footprint import available_memory
from midblock.checkpoints.skeleton import auto_class
from midblock.checkpoints.weight_files import find_weight_files
from midblock.trace import run_backbone

WORDS = 512  # token ids of the measured blocks
BLOCKS, MOST_BLOCKS = 2, 6  # measured; more where blocks are of several kinds
REPEATS, ENOUGH = 4, 2.0  # passes at most, and seconds after which no other begins
NOISE = 2**20  # numbers that weights are filled with, over and over
SAMPLE = 64 * 2**20  # bytes read of a file
PRODUCT = 1024  # side of the matrices that are multiplied where no block can be built


@dataclass(frozen=True)
class Speed:
    """What was measured.

    Attributes:
        operations: multiplications and additions a second that a forward pass makes here, by what `work_of` counts.
        reading: bytes a second that a weight file is read with, as it lies there now: again, or for the first time.
        blocks: how many were run; 0 where none could be and a product of matrices stands in for them.
        reason: why none could be.
        seconds: what measuring took.
    """

    operations: float
    reading: float
    blocks: int
    reason: str = ""
    seconds: float = 0.0


def measure(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, shape: tuple[int, int]) -> Speed:
    """Measure.

    Args:
        dtype: that the run computes in.
        shape: rows and tokens of a batch.
    """
    start = time.perf_counter()
    reading = reading_speed(find_weight_files(checkpoint.folder, allow_pickle=checkpoint.allow_pickle).files[0])
    try:
        anatomy = _few_blocks(checkpoint, dtype, device)
        ids = torch.randint(1, anatomy.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
        seconds = _best(lambda: run_backbone(anatomy, ids), device)
        operations = ids.numel() * work_of(anatomy, shape[1]) / seconds
        return Speed(operations, reading, len(anatomy), seconds=time.perf_counter() - start)
    except (*STRANGE, MidblockError) as error:
        reason = error.what if isinstance(error, MidblockError) else reason_of(error)
        return Speed(_product_speed(dtype, device), reading, 0, reason, time.perf_counter() - start)


def work_of(anatomy: Anatomy, tokens: int) -> float:
    """Multiplications and additions that all blocks together make for a token of a prompt of so many tokens.

    Two for each number of a matrix that the token meets (of experts, as many as it is sent to), and attention's two
    products with the tokens before it, half of all on average.
    """
    config = anatomy.config
    share = _share_of_experts(config)
    weights = sum(
        math.prod(each.shape) * (share if each.stacked else 1.0)
        for each in anatomy.projections.values()
        if each.block is not None and len(each.shape) > 1
    )
    return 2.0 * weights + len(anatomy) * 2.0 * tokens * anatomy.width


def reading_speed(file: Path) -> float:
    """Bytes a second of the first bytes of a file."""
    buffer = bytearray(min(SAMPLE, file.stat().st_size))
    start = time.perf_counter()
    with file.open("rb", buffering=0) as opened:
        count = opened.readinto(buffer) or 0
    return count / max(time.perf_counter() - start, 1e-6)


def _share_of_experts(config: Any) -> float:
    """The share of stacked experts that a token is sent to; 1 where the config does not say."""
    many = _first(config, EXPERTS)
    few = _first(config, ("num_experts_per_tok", "num_experts_per_token", "moe_k", "experts_per_token", "top_k"))
    return min(1.0, few / many) if few and many else 1.0


def _first(config: Any, names: tuple[str, ...]) -> int | None:
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def _few_blocks(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Anatomy:
    """A model of the same kind with a few blocks, in memory, of numbers drawn by chance.

    Raises:
        MidblockError: those alone do not fit.
    """
    config = _shortened(checkpoint.config)
    builder = auto_class(config)
    with quiet_transformers(), torch.device("meta"):
        outline = builder.from_config(config, dtype=dtype)
    asked = sum(value.nbytes for value in outline.parameters())
    if asked > available_memory(device) * 0.8:
        raise MidblockError("not even a few blocks fit")
    with quiet_transformers(), _Undrawn(), device:
        model: nn.Module = builder.from_config(config, dtype=dtype).eval().requires_grad_(False)
    _fill(model, dtype, device)
    return Anatomy.of(model)


def _shortened(config: Any) -> Any:
    """A config of a few blocks and few words, of the text model alone where that can be built."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    whole = copy.deepcopy(config)
    text = whole.get_text_config()
    whole = text if type(text) in MODEL_FOR_CAUSAL_LM_MAPPING else whole
    depth = text.num_hidden_layers
    kinds = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or ["the same"] * depth
    firsts = [kinds.index(kind) + 1 for kind in dict.fromkeys(kinds)]
    blocks = min(depth, MOST_BLOCKS, max(BLOCKS, *firsts))
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == depth:
            setattr(text, name, value[:blocks])
    text.num_hidden_layers = blocks
    text.vocab_size = min(text.vocab_size, WORDS)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, name, 0)
    return whole


class _Undrawn(TorchFunctionMode):
    """Leaves out drawing numbers for new weights, which takes longer than all passes: they are filled afterwards."""

    DRAWS = ("normal_", "uniform_", "erfinv_", "bernoulli_", "exponential_")

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in self.DRAWS and args:
            return args[0]
        return func(*args, **(kwargs or {}))


def _fill(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Ordinary numbers in every weight: what memory happens to hold may be slow, or not finite."""
    noise = (torch.randn(NOISE, generator=torch.Generator().manual_seed(0)) * 0.02).to(device, dtype)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim < 2:
                value.fill_(1.0)
                continue
            for part in value.view(-1).split(NOISE):
                part.copy_(noise[: len(part)])


def _best(act: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the fastest of a few passes, the first left out where there is time for another."""
    found: list[float] = []
    begun = time.perf_counter()
    while len(found) < REPEATS and (len(found) < 2 or time.perf_counter() - begun < ENOUGH):
        start = time.perf_counter()
        act()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        found.append(time.perf_counter() - start)
    return min(found[1:])


def _product_speed(dtype: torch.dtype, device: torch.device) -> float:
    matrix: Tensor = torch.ones(PRODUCT, PRODUCT, device=device, dtype=dtype)
    return 2.0 * PRODUCT**3 / _best(lambda: matrix @ matrix, device)
