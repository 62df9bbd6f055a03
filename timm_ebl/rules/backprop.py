"""Derivatives of an equilibrium for any loss, by equilibrium propagation or by backpropagation.

A `Backward` is given the free state and ``f = dC/ds``, the gradient of whatever loss was put on the layers, and makes
of them the gradient of the parameters and of the input (`timm_ebl.rules.autograd.equilibrium`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..arguments import is_number, require_flag
from ..energy.functional import State, norm, weigh
from ..energy.perturbation import Forced
from ..relaxation.minimizer import Minimizer, require_minimizer
from ..models.network import EnergyModel
from ..relaxation.record import Relaxation
from .strength import require_strength

__all__ = [
    "Backward",
    "EquilibriumBackward",
    "RecurrentBackward",
    "TruncatedBackward",
    "adjoint",
    "create_backward",
    "force_norm",
    "inner",
    "list_backwards",
    "name_of",
    "unroll",
]


@dataclass(frozen=True)
class Backward(ABC):
    """A way to differentiate an equilibrium.

    Attributes:
        second: Minimiser of what follows the free phase: the two forced phases, the sweeps that truncated
            backpropagation unrolls, or the adjoint steps of recurrent backpropagation.
    """

    second: Minimizer = Minimizer(order="backward", sweeps=3, omega=(1.6, 1.4, 1.2))  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        require_minimizer("second", self.second)

    @abstractmethod
    def __call__(self, model: EnergyModel, free: Relaxation, forces: Sequence[Tensor | None]) -> Tensor:
        """A scalar with the gradient of ``sum_l <f_l, s_l>`` at the free state, the forces held constant.

        Args:
            model: The network.
            free: Its free phase.
            forces: Gradient of the loss in each layer ``(s_1, .., o)``; ``None`` where it is zero.

        Returns:
            The scalar, to be differentiated by autograd in the parameters and in the input of the free phase.
        """


@dataclass(frozen=True)
class EquilibriumBackward(Backward):
    """Centred equilibrium propagation along the loss's gradient (Equation 6, for the linear part of the loss).

    With ``f`` scaled to ``|f| = 1`` for each sample, and ``s_b`` the minimum of ``E(theta, x, s) + b <f, s>``:

        gradient = |f| (dE(s_beta) - dE(s_-beta)) / (2 beta)

    in the parameters and the input alike, whatever the loss and its scale. It differs from the true gradient by
    ``O(beta^2)`` (Theorem 3). A Hopfield network's energy is quadratic between the bounds of its units, given the
    routes: with held routes and converged phases it is the true gradient, for any beta that moves no unit across a
    bound. A sample without a gradient contributes nothing. The free state is given two more sweeps first.

    Attributes:
        beta: Strength of the force.
        hold_routes: Keep the free state's pooling routes in the forced phases, and take it to be at rest
            (`timm_ebl.relaxation.response`). Not in the paper: the energy is smooth in beta.

    Raises:
        ValueError: beta is not a positive number.
    """

    beta: float = 0.5
    hold_routes: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_number(self.beta) and 0 < self.beta < math.inf):
            raise ValueError(f"beta is a positive number, not {self.beta!r}.")
        require_flag("hold_routes", self.hold_routes)

    def __call__(self, model: EnergyModel, free: Relaxation, forces: Sequence[Tensor | None]) -> Tensor:
        require_strength(self.beta, free.output.dtype)
        norm = force_norm(forces)
        step = self.beta / norm.where(norm != 0, 1)
        steps = [None if f is None else weigh(f, step) for f in forces]
        both = model.settle(free).repeat(2)
        forced = Forced([None if f is None else torch.cat([-f, f]) for f in steps])
        pair = model.relax(both.input, both, forced, self.second, self.hold_routes)
        weights = norm / (2 * self.beta)
        return model.contrast(pair, torch.cat([-weights, weights]))


@dataclass(frozen=True)
class TruncatedBackward(Backward):
    """Backpropagation through the last sweeps from the free state (paper, Table 1).

    Its memory grows with the number of sweeps.
    """

    second: Minimizer = Minimizer(sweeps=15, omega=1.0)  # noqa: RUF009 (frozen)

    def __call__(self, model: EnergyModel, free: Relaxation, forces: Sequence[Tensor | None]) -> Tensor:
        return inner(forces, unroll(model, free.input, free.state, self.second))


@dataclass(frozen=True)
class RecurrentBackward(Backward):
    """Implicit differentiation at the free state (Almeida, 1987; Pineda, 1987): see `adjoint`."""

    second: Minimizer = Minimizer(sweeps=15, omega=1.0, order="synchronous")  # noqa: RUF009 (frozen)

    def __call__(self, model: EnergyModel, free: Relaxation, forces: Sequence[Tensor | None]) -> Tensor:
        swept, adjoints = adjoint(model, free.input, free.state, forces, self.second)
        return inner(adjoints, swept)


_BACKWARDS: dict[str, type[Backward]] = {
    "ep": EquilibriumBackward,
    "tbp": TruncatedBackward,
    "rbp": RecurrentBackward,
}


def list_backwards() -> list[str]:
    """Names of the ways to differentiate an equilibrium."""
    return list(_BACKWARDS)


def create_backward(name: str, **options: object) -> Backward:
    """A way to differentiate an equilibrium, by name.

    Args:
        name: ``ep``, ``tbp`` or ``rbp``.
        **options: Fields of the method: ``second`` for all, ``beta`` and ``hold_routes`` for ``ep``.

    Raises:
        ValueError: The name or an option is unknown, or a value is out of range.
    """
    if name not in _BACKWARDS:
        raise ValueError(f"Unknown backward {name!r}: choose one of {', '.join(_BACKWARDS)}.")
    allowed = [f.name for f in fields(_BACKWARDS[name])]
    unknown = [option for option in options if option not in allowed]
    if unknown:
        raise ValueError(f"Backward {name!r} has no option {unknown[0]!r}: its options are {', '.join(allowed)}.")
    return _BACKWARDS[name](**options)


def name_of(backward: Backward) -> str | Backward:
    """The name by which `create_backward` makes a way to differentiate; without such a name the way itself."""
    return next((name for name, kind in _BACKWARDS.items() if backward == kind()), backward)


def unroll(model: EnergyModel, x: Tensor, state: State, minimizer: Minimizer) -> State:
    """The state after the minimiser's sweeps, differentiable through all of them."""
    for _ in range(_steps(minimizer)):
        state = model.sweep(x, state, minimizer)
    return state


def _steps(minimizer: Minimizer) -> int:
    """The number of steps back, one for each sweep."""
    if minimizer.tolerance is not None:
        raise ValueError(
            f"Backpropagation takes a fixed number of sweeps, not a tolerance ({minimizer.tolerance:g}): leave the "
            "tolerance of `second` out."
        )
    return minimizer.sweeps


def adjoint(
    model: EnergyModel, x: Tensor, state: State, forces: Sequence[Tensor | None], minimizer: Minimizer
) -> tuple[State, State]:
    """One sweep from a fixed point, and the adjoint state there (Almeida, 1987; Pineda, 1987).

    With ``F`` the sweep and ``v_1 = f``, the steps ``v_{t+1} = (dF/ds)^T v_t + f`` converge to the adjoint state; the
    gradient of ``<f, s>`` is ``(dF/dtheta)^T v_T``.

    Args:
        model: The network.
        x: Input ``(B, ..)``.
        state: The fixed point.
        forces: ``f``, for each layer; ``None`` where it is zero.
        minimizer: Order and over-relaxation of the sweep; as many adjoint steps as it has sweeps.

    Returns:
        ``F(state)``, differentiable in the parameters and in `x`, and ``v_T``.
    """
    with torch.enable_grad():
        leaves = tuple(layer.detach().requires_grad_() for layer in state)
        swept = model.sweep(x, leaves, minimizer)
    forces = tuple(torch.zeros_like(s) if f is None else f.to(s.dtype) for f, s in zip(forces, swept, strict=True))
    adjoints = forces
    for _ in range(_steps(minimizer) - 1):
        pulled = torch.autograd.grad(swept, leaves, adjoints, retain_graph=True, materialize_grads=True)
        adjoints = tuple(p + f for p, f in zip(pulled, forces, strict=True))
    return swept, adjoints


def force_norm(forces: Sequence[Tensor | None]) -> Tensor:
    """Norm of the forces on each sample, ``(B,)``."""
    return norm([f for f in forces if f is not None])


def inner(forces: Sequence[Tensor | None], layers: State) -> Tensor:
    """``sum_l <f_l, s_l>``."""
    products = [(f.to(s.dtype) * s).sum() for f, s in zip(forces, layers, strict=True) if f is not None]
    return torch.stack(products).sum()
