"""Derivatives of an equilibrium for any loss: what a way to take them is given, and what it returns.

It is given the free state and ``f = dC/ds``, the gradient of whatever loss was put on the layers, and makes of them the
gradient of the parameters and of the input (`timm_ebl.rules.autograd.equilibrium`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..energy.functional import State, norm

if TYPE_CHECKING:
    from ..relaxation.model import EnergyModel
    from ..relaxation.record import Relaxation

__all__ = ["Backward", "force_norm", "inner"]


class Backward(ABC):
    """A way to differentiate an equilibrium."""

    @abstractmethod
    def pullback(self, model: EnergyModel, free: Relaxation, forces: Sequence[Tensor | None]) -> Tensor:
        """A scalar with the gradient of ``sum_l <f_l, s_l>`` at the free state, the forces held constant.

        Args:
            model: The network.
            free: Its free phase.
            forces: Gradient of the loss in each layer ``(s_1, .., o)``; ``None`` where it is zero.

        Returns:
            The scalar, to be differentiated by autograd in the parameters and in the input of the free phase.
        """


def force_norm(forces: Sequence[Tensor | None]) -> Tensor:
    """Norm of the forces on each sample, ``(B,)``."""
    return norm([f for f in forces if f is not None])


def inner(forces: Sequence[Tensor | None], layers: State) -> Tensor:
    """``sum_l <f_l, s_l>``."""
    products = [(f.to(s.dtype) * s).sum() for f, s in zip(forces, layers, strict=True) if f is not None]
    return torch.stack(products).sum()
