"""What one forward pass of four tokens shows of how a model's parts are wired.

A norm belongs to the projection that it feeds, or whose output it takes; attention's output reads values of certain
heads. Names tell neither: `post_attention_layernorm` stands before the MLP in one family and behind attention in
another. So the model itself is asked: tensors that one module puts out and another takes are the same tensor, and at
the first token attention puts out nothing but that token's values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, device_of
from midblock.trace.residual import run_backbone

FIRST, TOKENS = 3, 4  # ids that are no padding, whose embedding is zero in some families
SAME = 1e-4  # of 1 − cosine


@dataclass(frozen=True, eq=False)
class Seen:
    """What went into each module of the blocks, and what came out, by the module's path; of its first call.

    Attributes:
        entered, left: kept alive, so that no two of them lie at one place.
    """

    entered: Mapping[str, Tensor]
    left: Mapping[str, Tensor]

    @classmethod
    def of(cls, anatomy: Anatomy) -> Seen:
        """Run the model on four tokens.

        Raises:
            MidblockError: it has no weights, or cannot be run where it lies.
        """
        owners = {name.rpartition(".")[0] for name, each in anatomy.projections.items() if each.block is not None}
        modules = dict(anatomy.model.named_modules())
        entered: dict[str, Tensor] = {}
        left: dict[str, Tensor] = {}

        def hook(path: str) -> Any:
            def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                    entered.setdefault(path, args[0])
                    left.setdefault(path, output)

            return keep

        hooks = [modules[path].register_forward_hook(hook(path)) for path in sorted(owners) if path in modules]
        device = device_of(anatomy.embedding)
        if device.type == "meta":
            raise MidblockError("a model without weights cannot show how its channels are wired")
        ids = torch.arange(FIRST, FIRST + TOKENS, device=device)[None] % anatomy.config.vocab_size
        try:
            with torch.no_grad():
                run_backbone(anatomy, ids)
        finally:
            for each in hooks:
                each.remove()
        return cls(entered, left)

    def feeds(self, path: str) -> list[str]:
        """Modules that take what a module puts out, as it is."""
        return [other for other, tensor in self.entered.items() if path in self.left and _same(self.left[path], tensor)]

    def takes(self, path: str) -> list[str]:
        """Modules whose output a module takes, as it is."""
        return [
            other for other, tensor in self.left.items() if path in self.entered and _same(tensor, self.entered[path])
        ]

    def values_read(
        self, values: str, rows: Int[Tensor, "v"], output: str, heads: tuple[int, int]
    ) -> Int[Tensor, "o"] | None:
        """Which value each input of attention's output projection is, grouped heads repeated.

        Args:
            values: path of the module that makes values, perhaps among others.
            rows: which of its outputs are values.
            output: path of the output projection.
            heads: of the output projection, how many and how wide.

        Returns:
            A position in `rows` for each input; None where the first token's values do not come out like that.
        """
        count, width = heads
        groups, rest = divmod(len(rows), width)
        if values not in self.left or output not in self.entered or rest or not groups or count % groups:
            return None
        made = self.left[values].flatten(0, -2)[0].double()[rows.to(self.left[values].device)]
        came = self.entered[output].flatten(0, -2)[0].double()
        if len(came) != count * width:
            return None
        index = torch.arange(len(rows)).unflatten(0, (groups, width)).repeat_interleave(count // groups, 0).flatten()
        return index if _aligned(made[index.to(made.device)], came, width) else None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.numel() == b.numel()


def _aligned(a: Float[Tensor, "n"], b: Float[Tensor, "n"], width: int) -> bool:
    """Whether two vectors point the same way in every head: what a head is scaled by does not move its channels."""
    cosines = torch.cosine_similarity(a.unflatten(0, (-1, width)), b.unflatten(0, (-1, width)), dim=-1)
    return bool((cosines > 1 - SAME).all())
