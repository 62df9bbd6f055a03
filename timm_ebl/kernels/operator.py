"""What an interaction prepares once for the many sweeps of a relaxation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["AutogradOperator", "Drive", "Operator", "inner_product"]


class Drive(NamedTuple):
    """The bottom-up input to a layer, with what its top-down counterpart needs.

    Attributes:
        value: ``drive(lower)``, of the shape of the upper layer; ``None`` if nothing needed it.
        route: The choice that depends on the lower state, for max pooling the position of each maximum. With the route
            held, the drive is linear. ``None`` where nothing is chosen.
    """

    value: Tensor | None
    route: Tensor | None = None


class Operator(ABC):
    """An interaction's drive, its transpose and its gradient, for many calls with the same parameters.

    `lower` is a state of the lower layer ``(B, *lower_shape)``, `upper` one of the upper layer ``(B, *upper_shape)``.
    """

    @abstractmethod
    def drive(self, lower: Tensor, route: Tensor | None = None) -> Drive:
        """``drive(lower)``, bias included, with the route that it takes; a given route is held."""

    @abstractmethod
    def feedback(self, upper: Tensor, route: Tensor | None) -> Tensor:
        """``d <upper, drive(lower)> / d lower`` along a route, in a tensor of its own, which the caller may change."""

    @abstractmethod
    def coupling(self, lower: Tensor, upper: Tensor, route: Tensor | None) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """``sum_b <upper_b, drive(lower_b)>`` along a route, a scalar, and its gradient in each of the tensors."""

    @abstractmethod
    def pair(self) -> Operator:
        """The same for a batch that holds every sample twice, block after block, without autograd.

        A route is given once for both copies, ``(B, ..)``, or for each, ``(2 B, ..)``.
        """

    @abstractmethod
    def changes(self) -> Operator:
        """The same for changes of states, one for each sample, without autograd: no bias, and the route held."""


class AutogradOperator(Operator):
    """The operator that autograd makes from the definition of a drive: slow; the tests compare all others with it.

    A drive need not be linear: its route is the lower state at which it is linearised, ``J`` its Jacobian there,

        drive(s) = f(r) + J (s - r),    feedback(o) = J^T o.

    Args:
        function: ``f``, the differentiable drive.
        tensors: What it is computed from.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], tensors: Sequence[Tensor]) -> None:
        self.function, self.tensors = function, tuple(tensors)

    def drive(self, lower: Tensor, route: Tensor | None = None) -> Drive:
        if route is None:
            return Drive(self.function(lower), lower)
        at = _of_each(route, lower)
        value, change = _jvp(self.function, at, lower - at)
        return Drive(value + change, route)

    def feedback(self, upper: Tensor, route: Tensor | None) -> Tensor:
        differentiable = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            at = _of_each(route, upper)
            # A tensor of its own: the derivative is partial, and the upper layer may have been made of the route.
            at = at.clone() if differentiable and at.requires_grad else at.detach().clone().requires_grad_()
            weight = upper.clone() if upper.is_inference() else upper
            value = (weight * self.function(at)).sum()
            (found,) = torch.autograd.grad(value, at, create_graph=differentiable, materialize_grads=True)
        return found.clone()

    def coupling(self, lower: Tensor, upper: Tensor, route: Tensor | None) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        with torch.inference_mode(False), torch.enable_grad():
            lower, upper = lower.detach().clone(), upper.detach().clone()
            value = (upper * self.drive(lower, route).value).sum()
            wanted = [tensor for tensor in self.tensors if tensor.requires_grad]
            found = iter(torch.autograd.grad(value, wanted, allow_unused=True) if wanted else ())
            return value.detach(), tuple(next(found) if tensor.requires_grad else None for tensor in self.tensors)

    def pair(self) -> Operator:
        return self

    def changes(self) -> Operator:
        return _ChangesByAutograd(self.function, self.tensors)


class _ChangesByAutograd(AutogradOperator):
    def drive(self, lower: Tensor, route: Tensor | None = None) -> Drive:
        at = lower if route is None else route  # without a route it is linear, with the same Jacobian everywhere
        return Drive(_jvp(self.function, at, lower)[1], route)


def _jvp(function: Callable[[Tensor], Tensor], at: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """``f(r)`` and ``J`` times a change."""
    with torch.inference_mode(False):
        at, change = (x.clone() if x.is_inference() else x for x in (at, change))
        return torch.autograd.functional.jvp(function, at, change, create_graph=torch.is_grad_enabled())


def _of_each(route: Tensor, layer: Tensor) -> Tensor:
    """The route of each sample, of two copies that share theirs too."""
    return route if route.shape[0] == layer.shape[0] else torch.cat([route, route])


def inner_product(tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    """A scalar that is linear in each of some tensors, from its gradients in them; ``None`` for those that it lacks."""
    pairs = zip(tensors, gradients, strict=True)
    return torch.stack([(tensor.detach() * found).sum() for tensor, found in pairs if found is not None]).sum()
