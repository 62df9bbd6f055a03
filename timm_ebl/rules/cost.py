"""The costs that a rule descends, and the nudge of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..arguments import Choice
from ..energy.perturbation import Nudged
from .rule import squared_error

__all__ = ["Cost", "CrossEntropyNudged"]

MOST_STEPS = 40
"""Newton steps at most: five are enough unless the strength or the drive is far beyond what learning meets."""


class Cost(Choice):
    """What is paid for an output ``o`` where ``y`` is desired."""

    SQUARED_ERROR = "squared-error"
    """``1/2 |o - y|^2``, as in the paper."""
    CROSS_ENTROPY = "cross-entropy"
    """``-sum_i y_i log softmax(o)_i``, the targets being probabilities."""

    def value(self, output: Tensor, target: Tensor) -> Tensor:
        """The cost of each sample, ``(B,)``."""
        if self is Cost.SQUARED_ERROR:
            return squared_error(output, target)
        return -(target * output.log_softmax(1)).sum(1)

    def gradient(self, output: Tensor, target: Tensor) -> Tensor:
        """Its gradient in the output, ``(B, M)``; that of the cross-entropy for targets that sum up to 1."""
        return (output if self is Cost.SQUARED_ERROR else output.softmax(1)) - target

    def nudge(self, target: Tensor, beta: float | Tensor, damped: bool = False) -> Nudged:
        """The perturbation ``beta C(o, y)``."""
        return (Nudged if self is Cost.SQUARED_ERROR else CrossEntropyNudged)(target, beta, damped)


@dataclass(frozen=True)
class CrossEntropyNudged(Nudged):
    """A nudge by the cross-entropy: ``o`` minimises ``1/2 |o|^2 - <o, u> + beta C(o, y)``, ``u`` the drive into it.

    With ``p = softmax(o)``, the minimum is where ``g(o) = o - u + beta (p - y) = 0``. Newton's steps ``H^-1 g``, with
    ``H = D - beta p p^T`` and ``D = 1 + beta diag(p)``, are in closed form (Sherman-Morrison); ``H`` is positive
    definite for ``beta > -1``. A step that does not shorten ``g`` is halved, sample by sample.
    """

    def output(self, drive: Tensor, present: Tensor) -> Tensor:
        if self.damped:
            return drive - self.beta * Cost.CROSS_ENTROPY.gradient(present, self.target)
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

    def cost(self, state: tuple[Tensor, ...]) -> Tensor:
        beta = self.beta.flatten() if isinstance(self.beta, Tensor) else self.beta
        return beta * Cost.CROSS_ENTROPY.value(state[-1], self.target)

    def _newton(self, output: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
        """``|g|`` and ``H^-1 g``."""
        p = output.softmax(1)
        slope = output - centre + self.beta * p
        diagonal = 1 + self.beta * p
        part = slope / diagonal
        rank_one = self.beta * (p * part).sum(1, keepdim=True) / (p / diagonal).sum(1, keepdim=True)
        return slope.norm(dim=1, keepdim=True), part + rank_one * p / diagonal
