"""What joins two layers (paper, Section 3).

An interaction between a lower layer ``s`` and an upper layer ``o`` adds ``-<o, drive(s)>`` to the energy. Its drive is
linear up to a choice that it makes of ``s``, its route (pooling: the place of each maximum), and may hold a bias of the
upper layer. The lower layer feels its feedback ``d <o, drive(s)> / d s``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..kernels.operator import AutogradOperator, Operator

__all__ = ["Interaction"]


class Interaction(ABC):
    """What joins a layer to one above it: contributes ``-<upper, drive(lower)>`` to the energy.

    A new kind needs `shape` and `drive`, and `initialise` if it has parameters to draw. A class names `Interaction`
    before the `nn.Module` that it is as well, whose ``forward`` it takes the place of.

    Attributes:
        is_linear: Whether the drive is linear in the lower state, up to its route and a bias. A network has a linear
            response (`EnergyModel.respond`) only if all its interactions are.
    """

    is_linear = False

    @abstractmethod
    def shape(self, lower: torch.Size) -> torch.Size:
        """Shape of one sample of the upper layer, given that of the lower one."""

    @abstractmethod
    def drive(self, lower: Tensor) -> Tensor:
        """The drive ``(B, *upper_shape)`` of a lower state ``(B, *lower_shape)``, differentiable: the definition."""

    def operator(self, lower_shape: torch.Size) -> Operator:
        """The drive for the many sweeps of a relaxation with the present parameters; by default autograd makes it.

        ``lower_shape`` is that of the lower layer, ``(B, ..)``; other batches are served as well.
        """
        return AutogradOperator(self.drive, self.tensors())

    def forward(self, lower: Tensor, state: Tensor | None = None) -> Tensor:
        """The upper layer's state, for hooks to see; without one the drive into it, unbounded."""
        return self.drive(lower) if state is None else state

    def tensors(self) -> tuple[Tensor, ...]:
        """What the drive is computed from: the parameters, or what pruning, a norm or the like makes of them now."""
        return tuple(self.parameters())

    def initialise(self, gain: float, bias_gain: float, generator: torch.Generator | None = None) -> None:  # noqa: B027
        """Draw weights from ``U(+-gain / sqrt(fan_in))``, biases from ``U(+-bias_gain / sqrt(fan_in))``; here none."""
