"""The products of a dense interaction's weight with states."""

from __future__ import annotations

import torch
from torch import Tensor

from .autocast import without_autocast
from .prepared import Prepared

__all__ = ["Matrix"]


class Matrix(Prepared):
    """A matrix, its transpose and its gradient, for many calls with the same weight.

    Images are channels last, and so are the columns of the matrix: no product copies an image to another layout. It is
    small, and computes in no fewer bits than its weight has, under autocast too.

    Args:
        weight: The matrix ``(M, N)``.
        bias: What is added, ``(M,)``.
        lower: Shape ``(B, ..)`` of its input, images ``(B, C, H, W)`` or vectors; other batches are served as well.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, lower: torch.Size) -> None:
        self.sample, self.bias, self.dtype = lower[1:], bias, weight.dtype
        self.matrix = _last(weight.unflatten(1, self.sample)).flatten(1).contiguous()
        self.columns = self.matrix.t()

    def up(self, lower: Tensor) -> Tensor:
        """``W s + b`` of ``(B, ..)``, ``(B, M)``."""
        return self._product(_last(lower).flatten(1), self.columns, None if self.of_changes else self.bias)

    def down(self, upper: Tensor) -> Tensor:
        """``W^T o`` of ``(B, M)``, ``(B, ..)``."""
        return self._as_samples(self._product(upper, self.matrix))

    def gradient(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Gradient of ``sum_b <upper_b, up(lower_b)>`` in the weight, of the weight's shape."""
        return self._as_samples(self._product(upper.t(), _last(lower).flatten(1))).flatten(1)

    def _as_samples(self, rows: Tensor) -> Tensor:
        if len(self.sample) != 3:
            return rows.view(rows.shape[0], *self.sample)
        channels, height, width = self.sample
        return rows.view(rows.shape[0], height, width, channels).permute(0, 3, 1, 2)

    def _product(self, x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x matrix + bias``, in the widest type of all."""
        if not x.dtype == matrix.dtype == self.dtype:
            wide = torch.promote_types(torch.promote_types(x.dtype, matrix.dtype), self.dtype)
            x, matrix, bias = x.to(wide), matrix.to(wide), None if bias is None else bias.to(wide)
        with without_autocast(x.device.type):
            return torch.mm(x, matrix) if bias is None else torch.addmm(bias, x, matrix)


def _last(x: Tensor) -> Tensor:
    """Images ``(B, C, H, W)`` as ``(B, H, W, C)``."""
    return x.permute(0, 2, 3, 1) if x.ndim == 4 else x
