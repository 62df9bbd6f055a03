"""The paper's procedure (`timm_ebl.rules.reference`) on a network of this package: the yardstick of the benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..energy.functional import State
from ..energy.interaction import ConvInteraction, DenseInteraction
from ..errors import ConfigError
from ..relaxation.minimizer import Minimizer, Start
from ..models.network import HopfieldNetwork
from ..rules import reference

__all__ = ["PlainProcedure"]


@dataclass(frozen=True)
class PlainProcedure:
    """Centred equilibrium propagation as the paper simulates it.

    Attributes:
        model: The network.
        free: Minimiser of the free phase, without over-relaxation and from zero.
        nudged_sweeps: Sweeps of each of the two nudged phases.
        beta: Strength of the nudge.

    Raises:
        ConfigError: The network is none of the paper's.
    """

    model: HopfieldNetwork
    free: Minimizer
    nudged_sweeps: int
    beta: float

    def __post_init__(self) -> None:
        if self.free.omega != 1 or self.free.start is not Start.ZERO:
            raise ValueError(f"The paper's procedure starts at zero and does not over-relax; got {self.free}.")
        *convolutions, read_out = self.model.interactions
        pooled = all(type(layer) is ConvInteraction and layer.pool == 2 for layer in convolutions)
        if not (pooled and isinstance(read_out, DenseInteraction)):
            raise ConfigError(
                "The paper's procedure is for networks with 2x2 max pooling after each convolution and a dense "
                "read-out, which this one is not: there is nothing to compare it with (--study compares our settings)."
            )

    @property
    def _layers(self) -> list[tuple[Tensor, Tensor]]:
        return [(interaction.weight, interaction.bias) for interaction in self.model.interactions]

    @torch.no_grad()
    def infer(self, x: Tensor) -> State:
        """The free phase."""
        start, groups = reference.zero_state(self._layers, x), self.free.groups(len(self._layers))
        return reference.relax(self._layers, x, start, self.free.sweeps, groups)

    def step(self, x: Tensor, y: Tensor) -> None:
        """One training step's gradient, left in the parameters."""
        target, order = F.one_hot(y, self.model.num_classes).to(x.dtype), self.free.groups
        free = self.infer(x)
        found = reference.gradients("c-ep", self._layers, x, target, free, self.beta, self.nudged_sweeps, order)
        for parameter, gradient in zip((p for layer in self._layers for p in layer), found, strict=True):
            parameter.grad = gradient
