"""The plain simulation of a relaxation and of centred equilibrium propagation: the yardstick of the benchmark.

Every sweep computes the drive and the feedback of every layer anew, the input's drive too, on tensors in PyTorch's
default layout, without autograd; the gradient is taken by autograd from the energies of the nudged states.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .energy import State
from .interaction import ConvInteraction, Drive
from .minimize import Minimizer
from .network import HopfieldNetwork
from .perturbation import FREE, Nudged, Perturbation
from .rules import as_target
from .walk import Walk

__all__ = ["PlainProcedure", "PlainWalk"]


class PlainWalk(Walk):
    """A relaxation that keeps nothing: every drive is computed wherever it is needed, in the default memory layout."""

    def drive(self, layer: int) -> Drive:
        below = self.state[layer - 1] if layer else self.x
        interaction = self.interactions[layer]
        if isinstance(interaction, ConvInteraction):
            return Drive(*F.max_pool2d(interaction(below), interaction.pool, return_indices=True))
        return interaction.drive(below)

    def field(self, layer: int) -> Tensor:
        above = layer + 1
        interaction = self.interactions[above] if above < len(self.state) else None
        if not isinstance(interaction, ConvInteraction):
            return super().field(layer)
        routed = F.max_unpool2d(
            self.state[above], self.drive(above).route, interaction.pool, output_size=self.state[layer].shape[2:]
        )
        feedback = F.conv_transpose2d(routed, interaction.weight, padding=interaction.padding)
        return self.drive(layer).value + feedback


@dataclass(frozen=True)
class PlainProcedure:
    """Centred equilibrium propagation as a plain simulation.

    Attributes:
        free: Minimiser of the free phase.
        nudged: Minimiser of the two nudged phases.
        beta: Strength of the nudge.
    """

    free: Minimizer
    nudged: Minimizer
    beta: float

    @torch.no_grad()
    def relax(
        self, model: HopfieldNetwork, x: Tensor, start: State | None, perturbation: Perturbation, minimizer: Minimizer
    ) -> State:
        """The state after the minimiser's sweeps, from a state or from zero."""
        start = start or tuple(x.new_zeros(shape) for shape in model.state_shapes(x))
        walk = PlainWalk(model.interactions, x, start, perturbation)
        for sweep in range(1, minimizer.sweeps + 1):
            walk.sweep(minimizer.groups(len(walk.state)), minimizer.omega_of(sweep))
        return tuple(walk.state)

    def infer(self, model: HopfieldNetwork, x: Tensor) -> State:
        """The free phase."""
        return self.relax(model, x, None, FREE, self.free)

    def step(self, model: HopfieldNetwork, x: Tensor, y: Tensor) -> None:
        """One training step's gradient, left in the parameters."""
        free = self.infer(model, x)
        target = as_target(y, free[-1])
        states = [self.relax(model, x, free, Nudged(target, sign * self.beta), self.nudged) for sign in (-1, 1)]
        contrast = (model.energy(x, states[1]) - model.energy(x, states[0])).mean() / (2 * self.beta)
        contrast.backward()
