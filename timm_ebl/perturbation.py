"""What is done to the output layer while the hidden layers relax: nothing, a nudge or a clamp (paper, Section 2).

Every phase of every rule is the same relaxation; only the block update of the output layer differs. With ``u`` the
drive into the output layer, a perturbation of cost ``c`` gives ``o = argmin_o 1/2 |o|^2 - <o, u> + c(o)``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FREE", "Clamped", "Free", "Nudged", "Perturbation"]


class Perturbation(ABC):
    """A change to the energy of the output layer."""

    @abstractmethod
    def output(self, drive: Tensor) -> Tensor:
        """The output layer ``(B, M)`` that minimises the perturbed energy, given the drive into it, ``(B, M)``."""

    @abstractmethod
    def cost(self, output: Tensor) -> Tensor:
        """What the perturbation adds to the energy, ``(B,)``, at an output ``(B, M)``."""

    @abstractmethod
    def select(self, samples: Tensor) -> Perturbation:
        """The same for some samples of the batch, given by their indices or a mask."""

    def start(self, output: Tensor) -> Tensor:
        """The output layer at the start of the phase, given the one that the last phase left."""
        return output


@dataclass(frozen=True)
class Free(Perturbation):
    """No perturbation (Equation 1): ``o = u``."""

    def output(self, drive: Tensor) -> Tensor:
        return drive

    def cost(self, output: Tensor) -> Tensor:
        return output.new_zeros(output.shape[0])

    def select(self, samples: Tensor) -> Free:
        return self


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

    Raises:
        ValueError: The strength, given as a float, is not above -1.
    """

    target: Tensor
    beta: float | Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.beta, Tensor) and not -1 < self.beta < math.inf:
            raise ValueError(
                f"A nudge has a finite strength above -1, or the output has no minimum; got {self.beta!r}."
            )

    def output(self, drive: Tensor) -> Tensor:
        return (drive + self.beta * self.target) / (1 + self.beta)

    def cost(self, output: Tensor) -> Tensor:
        return (self.beta * (output - self.target) ** 2).sum(1) / 2

    def select(self, samples: Tensor) -> Nudged:
        beta = self.beta[samples] if isinstance(self.beta, Tensor) else self.beta
        return Nudged(self.target[samples], beta)


@dataclass(frozen=True)
class Clamped(Perturbation):
    """The output layer held at a value (Equations 2 and 7): ``o = target``.

    Attributes:
        target: The output ``(B, M)``.
    """

    target: Tensor

    def output(self, drive: Tensor) -> Tensor:
        return self.target.to(drive.dtype)

    def cost(self, output: Tensor) -> Tensor:
        return torch.where((output == self.target.to(output.dtype)).all(1), 0.0, float("inf"))

    def select(self, samples: Tensor) -> Clamped:
        return Clamped(self.target[samples])

    def start(self, output: Tensor) -> Tensor:
        return self.target.to(output.dtype)
