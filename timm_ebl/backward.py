"""Derivatives of an equilibrium for any loss, by equilibrium propagation or by backpropagation.

`equilibrium` relaxes a network as its forward pass. Its backward pass receives ``f = dC/ds``, the gradient of whatever
loss was put on the layers, and a `Backward` turns it into the gradient of the parameters and of the input. Nothing of
the relaxation is recorded for it, but for the free state.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from .energy import State
from .minimize import Minimizer, Relaxation
from .network import EnergyModel
from .perturbation import Forced

__all__ = [
    "Backward",
    "EquilibriumBackward",
    "RecurrentBackward",
    "TruncatedBackward",
    "adjoint",
    "create_backward",
    "equilibrium",
    "list_backwards",
    "unroll",
]


@dataclass(frozen=True)
class Backward(ABC):
    """A way to differentiate an equilibrium.

    Attributes:
        second: Minimiser of what follows the free phase: the two forced phases, the sweeps that truncated
            backpropagation unrolls, or the adjoint steps of recurrent backpropagation.
    """

    second: Minimizer = Minimizer(order="backward", sweeps=2, omega=1.0)  # noqa: RUF009 (frozen)

    @abstractmethod
    def __call__(
        self, model: EnergyModel, free: Relaxation, forces: Sequence[Tensor | None], wanted: Sequence[Tensor], x: Tensor
    ) -> tuple[Tensor, ...]:
        """Gradient of ``sum_l <f_l, s_l>`` at the free state, the forces held constant.

        Args:
            model: The network.
            free: Its free phase.
            forces: Gradient of the loss in each layer ``(s_1, .., o)``; ``None`` where it is zero.
            wanted: What to differentiate in: parameters of the model, and `x` or not.
            x: The input, ``(B, ..)``, as a leaf of its own.

        Returns:
            The gradient in each of the tensors wanted.
        """


@dataclass(frozen=True)
class EquilibriumBackward(Backward):
    """Centred equilibrium propagation along the loss's gradient (Equation 6, with the linear part of the cost).

    With ``f`` scaled to ``|f| = 1`` for each sample, and ``s_b`` the minimum of ``E(theta, x, s) + b <f, s>``:

        gradient = |f| (dE(s_beta) - dE(s_-beta)) / (2 beta)

    in the parameters and the input alike. It differs from the true gradient by ``O(beta^2)`` (Theorem 3), whatever the
    loss and its scale: so does the update under a loss scaler, and a sample without a gradient contributes nothing.

    Attributes:
        beta: Strength of the force.
        hold_routes: Keep the free state's pooling routes in the forced phases.

    Raises:
        ValueError: beta is not a positive number.
    """

    beta: float = 0.25
    hold_routes: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.beta, bool) or not isinstance(self.beta, (int, float)) or not 0 < self.beta < math.inf:
            raise ValueError(f"beta is a positive number, not {self.beta!r}.")

    def __call__(
        self, model: EnergyModel, free: Relaxation, forces: Sequence[Tensor | None], wanted: Sequence[Tensor], x: Tensor
    ) -> tuple[Tensor, ...]:
        norm = _norm(forces)
        unit = [None if f is None else f / norm.where(norm != 0, 1).view(-1, *[1] * (f.ndim - 1)) for f in forces]
        forced = Forced([None if f is None else torch.cat([-self.beta * f, self.beta * f]) for f in unit])
        both = free.repeat(2)
        pair = model.relax(both.input, both, forced, self.second, self.hold_routes)
        # Weights of at most 1 stay in the range of 16 bits, whatever a loss scaler made of them.
        most = norm.amax() if norm.numel() else norm.new_ones(())
        weight = norm / most.where(most != 0, 1)
        with torch.enable_grad():
            inputs = pair.input.requires_grad_()
            energy = model.energy(inputs, pair)
        leaves = [inputs if tensor is x else tensor for tensor in wanted]
        weights = torch.cat([-weight, weight]).to(energy.dtype)
        found = torch.autograd.grad(energy, leaves, weights, materialize_grads=True)
        scale = most / (2 * self.beta)
        return tuple(
            (sum(g.chunk(2)) if tensor is x else g) * scale.to(g.dtype) for tensor, g in zip(wanted, found, strict=True)
        )


@dataclass(frozen=True)
class TruncatedBackward(Backward):
    """Backpropagation through the last sweeps from the free state (paper, Table 1).

    Its memory grows with the number of sweeps.
    """

    second: Minimizer = Minimizer(sweeps=15, omega=1.0)  # noqa: RUF009 (frozen)

    def __call__(
        self, model: EnergyModel, free: Relaxation, forces: Sequence[Tensor | None], wanted: Sequence[Tensor], x: Tensor
    ) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            state = unroll(model, x, free.state, self.second)
        return _pull(state, wanted, forces)


@dataclass(frozen=True)
class RecurrentBackward(Backward):
    """Implicit differentiation at the free state (Almeida, 1987; Pineda, 1987): see `adjoint`."""

    second: Minimizer = Minimizer(sweeps=15, omega=1.0, order="synchronous")  # noqa: RUF009 (frozen)

    def __call__(
        self, model: EnergyModel, free: Relaxation, forces: Sequence[Tensor | None], wanted: Sequence[Tensor], x: Tensor
    ) -> tuple[Tensor, ...]:
        swept, adjoints = adjoint(model, x, free.state, forces, self.second)
        return _pull(swept, wanted, adjoints)


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


def unroll(model: EnergyModel, x: Tensor, state: State, minimizer: Minimizer) -> State:
    """The state after the minimiser's sweeps, differentiable through all of them."""
    for _ in range(minimizer.sweeps):
        state = model.sweep(x, state, minimizer)
    return state


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
    for _ in range(minimizer.sweeps - 1):
        pulled = torch.autograd.grad(swept, leaves, adjoints, retain_graph=True, materialize_grads=True)
        adjoints = tuple(p + f for p, f in zip(pulled, forces, strict=True))
    return swept, adjoints


def equilibrium(model: EnergyModel, x: Tensor, backward: Backward, layers: Sequence[int] = (-1,)) -> tuple[Tensor, ...]:
    """Layers of the free state as a function of the input and the parameters of a network, with its derivatives.

    Args:
        model: The network, an `nn.Module`.
        x: Input ``(B, ..)``.
        backward: How to differentiate.
        layers: Which layers of ``(s_1, .., o)``, by index. The output layer is the one that minimises the energy given
            the others.

    Returns:
        The layers. Without gradients (`torch.no_grad`, or nothing that asks for one) nothing is kept for a backward
        pass.
    """
    parameters = tuple(model.parameters())
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *parameters)):
        return _Equilibrium.apply(model, backward, tuple(layers), x, *parameters)
    free = model.relax(x)
    return tuple(_layer(free, index) for index in layers)


class _Equilibrium(torch.autograd.Function):
    """``apply(model, backward, layers, x, *parameters)`` returns the layers; their gradient is left to `backward`."""

    @staticmethod
    def forward(
        ctx, model: nn.Module, backward: Backward, layers: tuple[int, ...], x: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.model, ctx.method, ctx.layers = model, backward, layers
        ctx.free = model.relax(x.detach())
        ctx.autocast = _present_autocast(x.device.type)
        ctx.save_for_backward(x, *parameters)
        ctx.set_materialize_grads(False)
        # Copies: whoever changes a result in place leaves the state alone that the backward pass starts from.
        return tuple(_layer(ctx.free, index).clone() for index in layers)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        _, *parameters = ctx.saved_tensors
        if any(now is not then for now, then in zip(ctx.model.parameters(), parameters, strict=True)):
            raise RuntimeError("The parameters of the model were replaced between its forward and its backward pass.")
        forces: list[Tensor | None] = [None] * len(ctx.free.state)
        for index, gradient in zip(ctx.layers, gradients, strict=True):
            forces[index] = gradient
        x = ctx.free.input.detach().requires_grad_(ctx.needs_input_grad[3])
        leaves = [
            tensor if needed else None
            for tensor, needed in zip((x, *parameters), ctx.needs_input_grad[3:], strict=True)
        ]
        wanted = [leaf for leaf in leaves if leaf is not None]
        with ctx.autocast:
            found = iter(ctx.method(ctx.model, ctx.free, forces, wanted, x))
        return None, None, None, *(None if leaf is None else next(found) for leaf in leaves)


def _layer(free: Relaxation, index: int) -> Tensor:
    last = index in (-1, len(free.state) - 1)
    return free.drives[-1].value if last and free.drives else free.state[index]


def _norm(forces: Sequence[Tensor | None]) -> Tensor:
    """Norm of the forces on each sample, ``(B,)``, in at least 32 bits."""
    flat = [f.flatten(1) for f in forces if f is not None]
    flat = [f.to(torch.promote_types(f.dtype, torch.float32)) for f in flat]
    return torch.stack([torch.linalg.vector_norm(f, dim=1) for f in flat]).norm(dim=0)


def _pull(layers: State, wanted: Sequence[Tensor], forces: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Gradient of ``sum_l <f_l, layer_l>`` in the tensors wanted; zero where they have no part in it."""
    pairs = [(layer, f.to(layer.dtype)) for layer, f in zip(layers, forces, strict=True) if f is not None]
    outputs, cotangents = zip(*pairs, strict=True)
    return torch.autograd.grad(outputs, wanted, cotangents, materialize_grads=True)


def _present_autocast(device: str) -> AbstractContextManager:
    """The automatic mixed precision in force, to be entered again later."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(
        device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device), torch.is_autocast_cache_enabled()
    )
