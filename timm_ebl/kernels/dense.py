"""A matrix with a bias as an operator."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .operator import Drive, Operator, inner_product

__all__ = ["dense"]


def dense(weight: Tensor, bias: Tensor | None, lower_shape: torch.Size) -> Operator:
    """``W s + b`` for many calls with the same weight.

    Images are channels last, and so are the columns of the matrix: no product copies an image to another layout. It is
    small, and computes in no fewer bits than its weight has, under autocast and for pairs and changes too.

    Args:
        weight: The matrix ``(M, N)``.
        bias: The bias ``(M,)``, if any.
        lower_shape: Shape ``(B, ..)`` of the lower layer, images ``(B, C, H, W)`` or vectors; other batches are served
            as well.
    """
    sample = lower_shape[1:]
    matrix = _last(weight.unflatten(1, sample)).flatten(1).contiguous()
    return _Dense(weight, bias, bias, matrix, sample, torch.amp.is_autocast_available(weight.device.type))


@dataclass(eq=False, repr=False)
class _Dense(Operator):
    """The operator.

    Attributes:
        weight: The weight.
        bias: The bias, if any.
        offset: What a drive adds, if anything.
        matrix: The weight, its columns in the order of channels-last images.
        sample: Shape of one sample of the lower layer.
        casts: Whether there is autocast on this device.
    """

    weight: Tensor
    bias: Tensor | None
    offset: Tensor | None
    matrix: Tensor
    sample: torch.Size
    casts: bool

    def drive(self, lower: Tensor, route: Tensor | None = None) -> Drive:
        return Drive(self._product(_last(lower).flatten(1), self.matrix.t(), self.offset))

    def feedback(self, upper: Tensor, route: Tensor | None) -> Tensor:
        return self._as_samples(self._product(upper, self.matrix))

    def coupling(self, lower: Tensor, upper: Tensor, route: Tensor | None) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        of_weight = self._as_samples(self._product(upper.t(), _last(lower).flatten(1))).flatten(1)
        if self.bias is None:
            return inner_product((self.weight,), (of_weight,)), (of_weight,)
        gradients = of_weight, None if self.offset is None else upper.sum(0)
        return inner_product((self.weight, self.bias), gradients), gradients

    def pair(self) -> Operator:
        return self

    def changes(self) -> Operator:
        return replace(self, offset=None)

    def _as_samples(self, rows: Tensor) -> Tensor:
        if len(self.sample) != 3:
            return rows.view(rows.shape[0], *self.sample)
        channels, height, width = self.sample
        return rows.view(rows.shape[0], height, width, channels).permute(0, 3, 1, 2)

    def _product(self, x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x matrix + bias``, in the widest type of all."""
        if not x.dtype == matrix.dtype == self.weight.dtype:
            wide = torch.promote_types(torch.promote_types(x.dtype, matrix.dtype), self.weight.dtype)
            x, matrix, bias = x.to(wide), matrix.to(wide), None if bias is None else bias.to(wide)
        if self.casts and torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return _multiply(x, matrix, bias)
        return _multiply(x, matrix, bias)


def _multiply(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(x, matrix) if bias is None else torch.addmm(bias, x, matrix)


def _last(x: Tensor) -> Tensor:
    """Images ``(B, C, H, W)`` as ``(B, H, W, C)``."""
    return x.permute(0, 2, 3, 1) if x.ndim == 4 else x
