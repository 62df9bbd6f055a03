"""The operator of an upper layer without units."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .operator import Drive, Operator

__all__ = ["EmptyOperator"]


@dataclass(frozen=True)
class EmptyOperator(Operator):
    """Drives nothing, and feeds back zeros.

    Args:
        sample: Shape of one sample of the lower layer.
    """

    sample: torch.Size

    def drive(self, lower: Tensor, route: Tensor | None = None) -> Drive:
        return Drive(lower[:, :0].flatten(1))

    def feedback(self, upper: Tensor, route: Tensor | None) -> Tensor:
        return upper.new_zeros(upper.shape[0], *self.sample)

    def coupling(self, lower: Tensor, upper: Tensor, route: Tensor | None) -> tuple[Tensor, tuple[()]]:
        return upper.new_zeros(()), ()

    def pair(self) -> Operator:
        return self

    def changes(self) -> Operator:
        return self
