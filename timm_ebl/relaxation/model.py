"""What a learning rule asks of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor

from ..energy.perturbation import FREE, Perturbation
from .minimizer import Minimizer

if TYPE_CHECKING:
    from ..energy.functional import State
    from ..energy.graph import Graph
    from .record import Relaxation

__all__ = ["SETTLING_SWEEPS", "EnergyModel"]

SETTLING_SWEEPS = 2
"""How many more sweeps a free state is given before it is contrasted: a gradient needs one nearer to equilibrium."""


class EnergyModel(ABC):
    """A model with an energy; any `nn.Module` derived from it can be trained by any rule.

    A state is a tuple of tensors with the batch first, the output layer ``(B, M)`` last. Where a state is expected, a
    `Relaxation` that ended in it may be given.

    Attributes:
        minimizer: How it relaxes unless it is told otherwise.
        perturbed, unrolled, adjoint: The same for what follows it, in rules that are not told otherwise.
        beta: Strength of such a rule's perturbation.
        force: Norm of the force by which the gradient of a loss perturbs it.
        rests: Whether ``dE/dtheta = 0`` at every free state: a rule then needs no free state to contrast.
    """

    minimizer: Minimizer = Minimizer()
    perturbed: Minimizer = Minimizer(order="backward", sweeps=3, omega=(1.6, 1.4, 1.2))
    unrolled: Minimizer = Minimizer(sweeps=15, omega=1.0)
    adjoint: Minimizer = Minimizer(sweeps=15, omega=1.0, order="synchronous")
    beta: float = 0.25
    force: float = 0.5
    rests: bool = False

    @property
    def responds(self) -> bool:
        """Whether it has a linear response (`respond`). If not, rules relax it in perturbed phases."""
        return type(self).respond is not EnergyModel.respond

    @abstractmethod
    def energy(self, x: Tensor, state: State | Relaxation) -> Tensor:
        """``E(theta, x, state)``, ``(B,)``, differentiable in the parameters."""

    @abstractmethod
    def relax(
        self,
        x: Tensor,
        start: State | Relaxation | None = None,
        perturbation: Perturbation = FREE,
        minimizer: Minimizer | None = None,
    ) -> Relaxation:
        """Minimise the perturbed energy over the state, without autograd."""

    @abstractmethod
    def sweep(self, x: Tensor, state: State | Relaxation, minimizer: Minimizer | None = None) -> State:
        """One free sweep of the minimiser, differentiable in the parameters and the state."""

    def respond(self, free: Relaxation, perturbation: Perturbation, minimizer: Minimizer) -> Relaxation:
        """The linear response of a free state to a perturbation, without autograd.

        A choice that the energy makes of the state (the pooling routes) stays as it is in the free state, which is
        treated as an equilibrium. A model that has such an approximation overrides this.

        Args:
            free: A free relaxation, or two copies of it (`Relaxation.twice`).
            perturbation: The perturbation of each copy.
            minimizer: How to minimise.

        Raises:
            NotImplementedError: The model has none.
        """
        raise NotImplementedError(f"A {type(self).__name__} has no linear response: relax it from the free state.")

    def settle(self, free: Relaxation, minimizer: Minimizer | None = None) -> Relaxation:
        """A free state after `SETTLING_SWEEPS` more sweeps of its minimiser, for responses to start from (`respond`).

        Args:
            free: A free relaxation.
            minimizer: That of the free relaxation; by default as the model was built.
        """
        return self.relax(free.input, free, minimizer=(minimizer or self.minimizer).further(SETTLING_SWEEPS))

    def recordable(self, *phases: Minimizer) -> Graph | None:
        """The graph, if what phases of these minimisers compute depends on it, its parameters and the input alone."""
        return None

    def answer(self, x: Tensor, minimizer: Minimizer | None = None) -> Tensor:
        """The output layer that minimises the energy given the others where the free relaxation ends, ``(B, M)``."""
        return self.relax(x, minimizer=minimizer).output

    def contrast(self, relaxation: Relaxation, weights: Tensor) -> Tensor:
        """``sum_b w_b E(theta, x_b, s_b)`` over the samples of a relaxation, differentiable in the parameters.

        Args:
            relaxation: Where the states ended.
            weights: ``w``, ``(B,)``.
        """
        return (weights * self.energy(relaxation.input, relaxation)).sum()
