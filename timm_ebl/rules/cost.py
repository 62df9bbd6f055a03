"""The costs that a rule descends, and the nudge of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..energy.perturbation import Nudged, Perturbation
from ..registry import Registry
from .rule import squared_error

__all__ = [
    "CROSS_ENTROPY",
    "SQUARED_ERROR",
    "Cost",
    "CrossEntropyNudged",
    "GradientNudged",
    "as_cost",
    "list_costs",
    "register_cost",
]

MOST_STEPS = 40
"""Newton steps at most: five are enough unless the strength or the drive is far beyond what learning meets."""


@dataclass(frozen=True)
class Cost(ABC):
    """What is paid for an output ``o`` where ``y`` is desired: a frozen dataclass, whose fields are its options."""

    @abstractmethod
    def value(self, output: Tensor, target: Tensor) -> Tensor:
        """The cost of each sample, ``(B,)``, for outputs and targets ``(B, M)``; differentiable in the output."""

    def gradient(self, output: Tensor, target: Tensor) -> Tensor:
        """Its gradient in the output, ``(B, M)``; by autograd unless a cost knows it."""
        with torch.enable_grad():
            leaf = output.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.value(leaf, target).sum(), leaf)
        return gradient

    def nudge(self, target: Tensor, beta: float | Tensor, damped: bool = False) -> Perturbation:
        """The perturbation ``beta C(o, y)``; unless a cost knows its minimum, damped or not a `GradientNudged`."""
        return GradientNudged(self, target, beta)


@dataclass(frozen=True)
class _SquaredError(Cost):
    """``1/2 |o - y|^2``, as in the paper."""

    def value(self, output: Tensor, target: Tensor) -> Tensor:
        return squared_error(output, target)

    def gradient(self, output: Tensor, target: Tensor) -> Tensor:
        return output - target

    def nudge(self, target: Tensor, beta: float | Tensor, damped: bool = False) -> Nudged:
        return Nudged(target, beta, damped)


@dataclass(frozen=True)
class _CrossEntropy(Cost):
    """``-sum_i y_i log softmax(o)_i``, the targets being probabilities; the gradient for those that sum up to 1."""

    def value(self, output: Tensor, target: Tensor) -> Tensor:
        return -(target * output.log_softmax(1)).sum(1)

    def gradient(self, output: Tensor, target: Tensor) -> Tensor:
        return output.softmax(1) - target

    def nudge(self, target: Tensor, beta: float | Tensor, damped: bool = False) -> CrossEntropyNudged:
        return CrossEntropyNudged(target, beta, damped)


SQUARED_ERROR, CROSS_ENTROPY = _SquaredError(), _CrossEntropy()

_COSTS: Registry[Cost] = Registry("cost")
_COSTS.register("squared-error", SQUARED_ERROR)
_COSTS.register("cross-entropy", CROSS_ENTROPY)
_COSTS.close()


def register_cost(name: str, cost: Cost, *, replace: bool = False) -> None:
    """Offer a cost by name, to `create_rule` and to ``train_ebl.py --cost``.

    Raises:
        TypeError: It is none.
        ValueError: The name is that of one of the package's own, and is not to be replaced.
    """
    if not isinstance(cost, Cost):
        raise TypeError(f"A cost is derived from timm_ebl.Cost; {name!r} is {cost!r}.")
    _COSTS.register(name, cost, replace=replace)


def list_costs() -> list[str]:
    """Names of the costs, the package's own and those registered since."""
    return _COSTS.names()


def as_cost(cost: Cost | str) -> Cost:
    """A cost, given as such or by name.

    Raises:
        ValueError: No cost has that name.
    """
    return cost if isinstance(cost, Cost) else _COSTS[cost]


@dataclass(frozen=True)
class GradientNudged(Perturbation):
    """A nudge by any cost: ``o <- u - beta dC/do``, the gradient where the output is, ``u`` the drive into it.

    Its fixed points are those of ``1/2 |o|^2 - <o, u> + beta C(o, y)``. It converges while ``|beta|`` times the cost's
    largest curvature is below 1.

    Attributes:
        paid: The cost ``C``.
        target: The desired output ``y``, ``(B, M)``.
        beta: Strength with its sign, one or ``(B, 1)``.
    """

    paid: Cost
    target: Tensor
    beta: float | Tensor

    def output(self, drive: Tensor, present: Tensor) -> Tensor:
        return drive - self.beta * self.paid.gradient(present, self.target).to(drive.dtype)

    def cost(self, state: Sequence[Tensor]) -> Tensor:
        beta = self.beta.flatten() if isinstance(self.beta, Tensor) else self.beta
        return beta * self.paid.value(state[-1], self.target)


@dataclass(frozen=True)
class CrossEntropyNudged(Nudged):
    """A nudge by the cross-entropy: ``o`` minimises ``1/2 |o|^2 - <o, u> + beta C(o, y)``, ``u`` the drive into it.

    With ``p = softmax(o)``, the minimum is where ``g(o) = o - u + beta (p - y) = 0``. Newton's steps ``H^-1 g``, with
    ``H = D - beta p p^T`` and ``D = 1 + beta diag(p)``, are in closed form (Sherman-Morrison); ``H`` is positive
    definite for ``beta > -1``. A step that does not shorten ``g`` is halved, sample by sample.
    """

    def output(self, drive: Tensor, present: Tensor) -> Tensor:
        if self.damped:
            return self._plain().output(drive, present)
        wide = torch.promote_types(drive.dtype, torch.float32)
        centre = drive.to(wide) + self.beta * self.target
        least, found = 4 * torch.finfo(wide).eps * (1 + centre.norm(dim=1, keepdim=True)), drive.to(wide)
        share = torch.ones_like(least)
        size, step = self._newton(found, centre)
        for _ in range(MOST_STEPS):
            if not drive.is_cuda and bool((size <= least).all()):
                break
            tried = found - share * step
            shorter = self._newton(tried, centre)
            better = shorter[0] < size
            found = torch.where(better, tried, found)
            size, step = (torch.where(better, new, old) for old, new in zip((size, step), shorter, strict=True))
            share = torch.where(better, 1.0, share / 2)
        return found.to(drive.dtype)

    def cost(self, state: Sequence[Tensor]) -> Tensor:
        return self._plain().cost(state)

    def _plain(self) -> GradientNudged:
        return GradientNudged(CROSS_ENTROPY, self.target, self.beta)

    def _newton(self, output: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
        """``|g|`` and ``H^-1 g``."""
        p = output.softmax(1)
        slope = output - centre + self.beta * p
        diagonal = 1 + self.beta * p
        part = slope / diagonal
        rank_one = self.beta * (p * part).sum(1, keepdim=True) / (p / diagonal).sum(1, keepdim=True)
        return slope.norm(dim=1, keepdim=True), part + rank_one * p / diagonal
