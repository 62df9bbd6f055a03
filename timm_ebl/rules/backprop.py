"""The paper's two baselines (Table 1), as learning rules and as the backward pass of any loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from .backward import Backward, inner
from .cost import SQUARED_ERROR, Cost, as_cost
from .rule import Rule, RuleOutput, as_target, require_energy

if TYPE_CHECKING:
    from ..energy.functional import State
    from ..relaxation.minimizer import Minimizer
    from ..relaxation.model import EnergyModel
    from ..relaxation.record import Relaxation

__all__ = ["RecurrentBackprop", "TruncatedBackprop"]


@dataclass(frozen=True)
class _Baseline(Rule, Backward):
    """What both baselines have.

    Attributes:
        cost: What is descended, as such or by name.
    """

    cost: Cost = SQUARED_ERROR

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "cost", as_cost(self.cost))

    def _relax(self, model: EnergyModel, x: Tensor, y: Tensor, start: State | None) -> tuple[Relaxation, Tensor]:
        """The free phase, and the target."""
        require_energy(model)
        free = model.relax(x, start, minimizer=self.free)
        return free, as_target(y, free.output)


@dataclass(frozen=True)
class TruncatedBackprop(_Baseline):
    """Baseline TBP: backpropagation through further sweeps from the free state (paper, Table 1).

    Its memory grows with the number of sweeps.

    Attributes:
        unrolled: The sweeps that are gone back through; ``None`` takes the model's own (`EnergyModel.unrolled`).
    """

    unrolled: Minimizer | None = None

    second_field: ClassVar[str | None] = "unrolled"

    def __call__(self, model: EnergyModel, x: Tensor, y: Tensor, start: State | None = None) -> RuleOutput:
        free, target = self._relax(model, x, y, start)
        state = self._unroll(model, x, free.state)
        last = tuple(layer.detach() for layer in state)
        return RuleOutput(self.cost.value(state[-1], target).mean(), free.output, free, last)

    def pullback(self, model: EnergyModel, free: Relaxation, forces: Sequence[Tensor | None]) -> Tensor:
        return inner(forces, self._unroll(model, free.input, free.state))

    def _unroll(self, model: EnergyModel, x: Tensor, state: State) -> State:
        """The state after the sweeps, differentiable through all of them."""
        unrolled = self.fitted(model).unrolled
        for number in range(1, _steps("unrolled", unrolled) + 1):
            state = model.sweep(x, state, replace(unrolled, omega=unrolled.omega_of(number)))
        return state


@dataclass(frozen=True)
class RecurrentBackprop(_Baseline):
    """Baseline RBP: implicit differentiation at the free state (Almeida, 1987; Pineda, 1987).

    With ``F`` one sweep and ``f = dC/ds``, the steps ``v_1 = f``, ``v_{t+1} = (dF/ds)^T v_t + f`` converge to the
    adjoint state at a fixed point of ``F``; the gradient is ``(dF/dtheta)^T v_T``.

    Attributes:
        adjoint: Order and over-relaxation of the sweep; there are as many adjoint steps as it has sweeps. ``None``
            takes the model's own (`EnergyModel.adjoint`).
    """

    adjoint: Minimizer | None = None

    second_field: ClassVar[str | None] = "adjoint"

    def __call__(self, model: EnergyModel, x: Tensor, y: Tensor, start: State | None = None) -> RuleOutput:
        free, target = self._relax(model, x, y, start)
        forces = [None] * (len(free.state) - 1) + [self.cost.gradient(free.state[-1], target) / len(target)]
        projection, swept = self._project(model, x, free.state, forces)
        cost = self.cost.value(free.state[-1], target).mean()
        last = tuple(layer.detach() for layer in swept)
        return RuleOutput(cost + projection - projection.detach(), free.output, free, last)

    def pullback(self, model: EnergyModel, free: Relaxation, forces: Sequence[Tensor | None]) -> Tensor:
        return self._project(model, free.input, free.state, forces)[0]

    def _project(
        self, model: EnergyModel, x: Tensor, state: State, forces: Sequence[Tensor | None]
    ) -> tuple[Tensor, State]:
        """``<v_T, F(state)>``, and one sweep ``F(state)``, both differentiable in the parameters and in `x`."""
        adjoint = self.fitted(model).adjoint
        with torch.enable_grad():
            leaves = tuple(layer.detach().requires_grad_() for layer in state)
            swept = model.sweep(x, leaves, adjoint)
        forces = tuple(torch.zeros_like(s) if f is None else f.to(s.dtype) for f, s in zip(forces, swept, strict=True))
        adjoints = forces
        for _ in range(_steps("adjoint", adjoint) - 1):
            pulled = torch.autograd.grad(swept, leaves, adjoints, retain_graph=True, materialize_grads=True)
            adjoints = tuple(p + f for p, f in zip(pulled, forces, strict=True))
        return inner(adjoints, swept), swept


def _steps(name: str, minimizer: Minimizer) -> int:
    """The number of steps back, one for each sweep."""
    if minimizer.tolerance is not None:
        raise ValueError(
            f"Backpropagation takes a fixed number of sweeps, not a tolerance ({minimizer.tolerance:g}): leave the "
            f"tolerance of `{name}` out."
        )
    return minimizer.sweeps
