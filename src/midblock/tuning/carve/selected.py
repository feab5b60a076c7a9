"""SelectedWeight: a parameter that takes each entry from one of two models, as masks of its rows and columns say.

The model's own parameter holds what it computes with: the tuned value where both masks are on, the base's elsewhere.
`rest` holds the other value of each entry. So nothing is built anew for a forward pass, autograd gives the gradient of
the chosen weights as in any training, and both ends are exact to the bit. The masks' gradients follow in closed form,
once an optimiser step: of W = W_b + (m_row m_colᵀ) ⊙ Δ they are (dW ⊙ Δ) m_col and (dW ⊙ Δ)ᵀ m_row. Cost: three
readings and one writing of the weight, in pieces that stay in the cache, and a copy of it for `rest`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from midblock.tuning.carve.channels import Channels

TILE = 2**17  # entries at a time: four such pieces fit into a core's own cache


@dataclass(eq=False)
class SelectedWeight:
    """A parameter between two models.

    Attributes:
        parameter: what the model computes with.
        rest: the other value of each entry, in the parameter's shape.
        layer: whose masks decide.
        rows, columns: the mask of each row and column of the parameter as a matrix; None where none decides.
    """

    parameter: nn.Parameter
    rest: Tensor
    layer: int
    rows: Int[Tensor, "r"] | None
    columns: Int[Tensor, "c"] | None

    @classmethod
    def of(cls, parameter: nn.Parameter, rest: Tensor, channels: Channels) -> SelectedWeight:
        """See a parameter as a matrix: a vector as one column, experts as one row each."""
        first, *others = channels.index
        columns = others[0] if len(others) == 1 else None
        parameter.data, rest = parameter.data.contiguous(), rest.contiguous()
        return cls(parameter, rest, channels.layer, first, columns)

    @torch.no_grad()
    def gather(self, on: Bool[Tensor, "masks"], total: Float[Tensor, "masks"], *, trained: bool) -> None:
        """Add the loss's gradient by each mask to `total`, and leave of the weights' gradient what is on.

        Args:
            on: the layer's masks.
            total: the layer's gradients, in float64 where the device has it.
            trained: the weights are trained too; otherwise their gradient is taken away.
        """
        gradient = self.parameter.grad
        if gradient is None:
            return
        if not gradient.is_contiguous():
            gradient = self.parameter.grad = gradient.contiguous()
        weight, rest, grads = (self._matrix(each) for each in (self.parameter.data, self.rest, gradient))
        kind = torch.promote_types(weight.dtype, torch.float32)
        row, column = self._on(on, self.rows, kind), self._on(on, self.columns, kind)
        by_column = None if column is None else torch.zeros_like(column)
        by_row = None if row is None else torch.empty_like(row)
        for start in range(0, len(weight), step := max(1, TILE // max(1, weight.shape[1]))):
            piece = slice(start, start + step)
            given = grads[piece]
            change = (weight[piece].to(kind) - rest[piece].to(kind)).mul_(given)
            if by_row is not None:
                by_row[piece] = change.sum(1) if column is None else change @ column
            if by_column is not None:
                by_column += change.sum(0) if row is None else row[piece] @ change
            if trained:
                if column is not None:
                    given.mul_(column)
                if row is not None:
                    given.mul_(row[piece, None])
        if not trained:
            self.parameter.grad = None
        for index, sums in ((self.rows, by_row), (self.columns, by_column)):
            if index is not None and sums is not None:
                # W − rest is Δ where both masks are on, and −Δ where one is off
                total.index_add_(0, index, torch.where(on[index], sums, -sums).to(total.dtype))

    @torch.no_grad()
    def select(self, before: Bool[Tensor, "masks"], after: Bool[Tensor, "masks"], moments: Tensor | None) -> None:
        """Exchange the entries whose masks came to select the other model.

        Args:
            before, after: the layer's masks.
            moments: Adam's running mean of the gradient, which begins anew at those entries: a mean that is not zero
                would go on to move what is off.
        """
        tensors = [self._matrix(each) for each in (self.parameter.data, self.rest)]
        mean = None if moments is None else self._matrix(moments)
        if self.rows is not None:
            turned = (before[self.rows] != after[self.rows]).nonzero()[:, 0]
            if len(turned):
                _exchange(tensors, mean, turned, self._where(before, self.columns), along=0)
        if self.columns is not None:
            turned = (before[self.columns] != after[self.columns]).nonzero()[:, 0]
            if len(turned):
                _exchange(tensors, mean, turned, self._where(after, self.rows), along=1)

    def tuned(self, kept: tuple[Tensor | None, ...]) -> Tensor:
        """The values at chosen places of each dimension."""
        found = self.parameter.data
        for along, places in enumerate(kept):
            found = found if places is None else found.index_select(along, places.to(found.device))
        return found

    def to(self, device: torch.device) -> None:
        """Bring what lies beside the parameter to a device."""
        self.rest = self.rest.to(device)
        self.rows = None if self.rows is None else self.rows.to(device)
        self.columns = None if self.columns is None else self.columns.to(device)

    def _matrix(self, tensor: Tensor) -> Float[Tensor, "r c"]:
        return tensor if tensor.ndim == 2 else tensor.view(len(tensor), -1)

    @staticmethod
    def _on(on: Bool[Tensor, "masks"], index: Int[Tensor, "n"] | None, kind: torch.dtype) -> Float[Tensor, "n"] | None:
        return None if index is None else on[index].to(kind)

    @staticmethod
    def _where(on: Bool[Tensor, "masks"], index: Int[Tensor, "n"] | None) -> Bool[Tensor, "n"] | None:
        return None if index is None else on[index]


def _exchange(
    tensors: list[Tensor], mean: Tensor | None, turned: Int[Tensor, "t"], others: Bool[Tensor, "o"] | None, along: int
) -> None:
    """Exchange rows or columns of two matrices, as far as the other dimension's masks are on."""
    left, right = (each.index_select(along, turned) for each in tensors)
    if others is None:
        new = right, left
    else:
        swapped = others[None] if along == 0 else others[:, None]
        new = torch.where(swapped, right, left), torch.where(swapped, left, right)
    for tensor, values in zip(tensors, new, strict=True):
        tensor.index_copy_(along, turned, values)
    if mean is not None:
        if others is None:
            mean.index_fill_(along, turned, 0.0)
        else:
            kept = mean.index_select(along, turned).masked_fill_(others[None] if along == 0 else others[:, None], 0.0)
            mean.index_copy_(along, turned, kept)
