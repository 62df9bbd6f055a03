"""The gradient of energies in the parameters, at states that count as constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..kernels.operator import Drive, Operator
    from .functional import State
    from .graph import Graph

__all__ = ["NO_SECOND", "KnownGradient", "weighted_energy"]

NO_SECOND = "The gradient of a relaxation cannot be differentiated again: there is no second derivative."


def weighted_energy(
    rest: Tensor,
    graph: Graph,
    operators: Sequence[Operator],
    drives: Sequence[Drive],
    layers: State,
    uppers: State,
    copies: int,
    x: Tensor,
) -> tuple[Tensor, list[Tensor | None]]:
    """``sum_b w_b E(theta, x_b, s_b)`` at fixed states, with its gradient for `KnownGradient`.

    ``w_b dE/dtheta_jk = -d <u_k, drive_jk(s_j)> / dtheta_jk`` needs the state, the pooling routes and ``u`` alone, so
    no forward pass is repeated: ``u_k`` is ``w s_k`` in a Hopfield network. Operators and drives (their routes) are
    those of the edges, in their order; the batch holds every sample once or twice.

    Returns:
        The scalar ``rest - sum_jk <u_k, drive_jk(s_j)>``; and the opposite of its gradient in the input, if that
        requires one, and in each of the tensors of the interactions (`Graph.tensors`).
    """
    total = rest
    gradients: list[Tensor | None] = []
    input_gradient = None
    for (_, lower, upper), operator, (_, route) in zip(graph.edges, operators, drives, strict=True):
        if lower is not None:
            value, found = _of_copies(operator, copies).coupling(layers[lower], uppers[upper], route)
        else:  # both copies have the same input
            above = sum(uppers[upper].chunk(copies))
            once = None if route is None else route[: len(above)]
            value, found = operator.coupling(x[: len(above)], above, once)
            if x.requires_grad:
                part = _of_copies(operator, copies).feedback(uppers[upper], route)
                input_gradient = part if input_gradient is None else input_gradient.add_(part)
        total = total - value
        gradients += found
    return total, [input_gradient, *gradients]


class KnownGradient(torch.autograd.Function):
    """``apply(value, opposite, *tensors)``: the value, its gradient in the tensors being minus ``opposite``."""

    @staticmethod
    def forward(ctx, value: Tensor, opposite: Sequence[Tensor | None], *tensors: Tensor) -> Tensor:
        ctx.opposite = opposite
        return value.clone()

    @staticmethod
    def backward(ctx, scale: Tensor) -> tuple[Tensor | None, ...]:
        gradients = zip(ctx.opposite, ctx.needs_input_grad[2:], strict=True)
        found = [-scale * g if g is not None and needed else None for g, needed in gradients]
        if torch.is_grad_enabled():
            found = [None if g is None else _Once.apply(g.detach().requires_grad_()) for g in found]
        return None, None, *found


def _of_copies(operator: Operator, copies: int) -> Operator:
    return operator if copies == 1 else operator.pair()


class _Once(torch.autograd.Function):
    """A gradient that cannot be differentiated again: trying raises an error, where autograd would return nothing."""

    @staticmethod
    def forward(ctx, gradient: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> NoReturn:
        raise RuntimeError(NO_SECOND)
