"""Perturbations of a network while it relaxes: none, a nudge, a clamp or a force (paper, Section 2).

Every phase of every rule is the same relaxation; only the block update of the output layer differs. With ``u`` the
drive into the output layer, a perturbation of cost ``c`` gives ``o = argmin_o 1/2 |o|^2 - <o, u> + c(o)``. A force is
the one perturbation that reaches the hidden layers as well.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FREE", "Clamped", "Forced", "Free", "Nudged", "Perturbation"]


class Perturbation(ABC):
    """A change to the energy: a cost of the state, most often of the output layer alone."""

    @abstractmethod
    def output(self, drive: Tensor, present: Tensor) -> Tensor:
        """The updated output layer, ``(B, M)``: the minimum of the perturbed energy over it, the others fixed.

        Args:
            drive: The drive into it, ``(B, M)``.
            present: The output layer as it is, ``(B, M)``; an update by a step depends on it, not one to the minimum.
        """

    def hidden(self, layer: int, drive: Tensor) -> Tensor:
        """The input to hidden layer number ``layer`` (from 0), given its drive and feedback together."""
        return drive

    def reaches(self, layer: int) -> bool:
        """Whether it acts on hidden layer number ``layer`` itself."""
        return False

    @abstractmethod
    def cost(self, state: Sequence[Tensor]) -> Tensor:
        """What the perturbation adds to the energy, ``(B,)``, at a state ``(s_1, .., o)``."""

    def start(self, output: Tensor) -> Tensor:
        """The output layer at the start of the phase, given the one that the last phase left."""
        return output


@dataclass(frozen=True)
class Free(Perturbation):
    """No perturbation (Equation 1): ``o = u``."""

    def output(self, drive: Tensor, present: Tensor) -> Tensor:
        return drive

    def cost(self, state: Sequence[Tensor]) -> Tensor:
        return state[-1].new_zeros(len(state[-1]))


FREE = Free()
"""The perturbation of the free phase."""


@dataclass(frozen=True)
class Nudged(Perturbation):
    """Equilibrium propagation's nudge (Equation 4): ``o = (u + beta y) / (1 + beta)``.

    Its cost is ``beta C(o, y) = beta/2 |o - y|^2``.

    Attributes:
        target: The desired output ``y``, ``(B, M)``.
        beta: Strength, positive towards the target and negative away from it, above -1 (at -1 the output has no
            minimum). A float, or a tensor ``(B, 1)`` with a strength for each sample.
        damped: Update the output by ``o <- u - beta (o - y)``, as the paper's released code does: a step down the
            gradient instead of the minimum. It has the same fixed point, and converges for ``|beta| < 1``.

    Raises:
        ValueError: The strength, given as a float, is not above -1.
    """

    target: Tensor
    beta: float | Tensor
    damped: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.beta, Tensor) and not -1 < self.beta < math.inf:
            raise ValueError(
                f"A nudge has a finite strength above -1, or the output has no minimum; got {self.beta!r}."
            )

    def output(self, drive: Tensor, present: Tensor) -> Tensor:
        if self.damped:
            return drive - self.beta * (present - self.target)
        return (drive + self.beta * self.target) / (1 + self.beta)

    def cost(self, state: Sequence[Tensor]) -> Tensor:
        return (self.beta * (state[-1] - self.target) ** 2).sum(1) / 2


@dataclass(frozen=True)
class Clamped(Perturbation):
    """The output layer held at a value (Equations 2 and 7): ``o = target``.

    Attributes:
        target: The output ``(B, M)``.
    """

    target: Tensor

    def output(self, drive: Tensor, present: Tensor) -> Tensor:
        return self.target.to(torch.promote_types(drive.dtype, torch.float32))

    def cost(self, state: Sequence[Tensor]) -> Tensor:
        output = state[-1]
        return torch.where((output == self.target.to(output.dtype)).all(1), 0.0, float("inf"))

    def start(self, output: Tensor) -> Tensor:
        return self.target.to(torch.promote_types(output.dtype, torch.float32))


@dataclass(frozen=True)
class Forced(Perturbation):
    """A constant force on the layers: the linear cost ``sum_l <f_l, s_l>``, so that ``o = u - f_L``.

    Equilibrium propagation of any loss: with ``f = beta dC/ds`` it is the nudge of the loss's linear part. Unlike a
    nudge it leaves the energy as convex as it was, whatever its strength and sign.

    Attributes:
        forces: The force on each layer ``(s_1, .., o)``, of the layer's shape; ``None`` where there is none.
    """

    forces: Sequence[Tensor | None]

    def output(self, drive: Tensor, present: Tensor) -> Tensor:
        return self.hidden(-1, drive)

    def hidden(self, layer: int, drive: Tensor) -> Tensor:
        force = self.forces[layer]
        return drive if force is None else drive - force.to(drive.dtype)

    def reaches(self, layer: int) -> bool:
        return self.forces[layer] is not None

    def cost(self, state: Sequence[Tensor]) -> Tensor:
        works = [(f * s).flatten(1).sum(1) for f, s in zip(self.forces, state, strict=True) if f is not None]
        return torch.stack(works).sum(0) if works else FREE.cost(state)
