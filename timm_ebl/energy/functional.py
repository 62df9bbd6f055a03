"""The energy of a state, and its gradient (paper, Section 3).

    E(theta, x, s) = 1/2 sum_k |s_k|^2 - sum_k <s_k, drive_k(s_{k-1})>

is the sum over the interactions of a network (`timm_ebl.energy.interaction`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from ..kernels.prepared import Prepared
from .interaction import Interaction

__all__ = ["NO_SECOND", "State", "WeightedEnergy", "energy_from_drives", "norm", "weigh"]

NO_SECOND = "The gradient of a relaxation cannot be differentiated again: there is no second derivative."

State = tuple[Tensor, ...]
"""Layers ``(s_1, .., s_{L-1}, o)``, each with the batch first; the input is not part of the state."""


def energy_from_drives(state: State, drives: Sequence[Tensor]) -> Tensor:
    """Energy ``(B,)`` of a state whose drives are known: ``sum_k <s_k, s_k / 2 - drive_k>``, in at least 32 bits.

    Args:
        state: The layers ``(s_1, .., o)``.
        drives: ``drive_k(s_{k-1})`` for every layer of the state, of the same shapes.
    """
    return torch.stack([_inner(torch.sub(s, d, alpha=2), s) / 2 for s, d in zip(state, drives, strict=True)]).sum(0)


def norm(layers: Sequence[Tensor]) -> Tensor:
    """Norm of several layers together, of each sample, ``(B,)``, in at least 32 bits."""
    norms = [
        torch.linalg.vector_norm(s, dim=tuple(range(1, s.ndim)), dtype=torch.promote_types(s.dtype, torch.float32))
        for s in layers
    ]
    return torch.stack(norms).norm(dim=0)


def weigh(layer: Tensor, weights: Tensor) -> Tensor:
    """Each sample of a layer ``(B, ..)`` times its weight, ``(B,)``."""
    return layer * weights.view(-1, *[1] * (layer.ndim - 1))


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """``<a, b>`` of each sample, ``(B,)``, summed in at least 32 bits."""
    density = a * b
    return density.sum(tuple(range(1, a.ndim)), dtype=torch.promote_types(density.dtype, torch.float32))


class WeightedEnergy(torch.autograd.Function):
    """``sum_b w_b E(theta, x_b, s_b)`` at fixed states, and its gradient in the parameters and the input.

    ``dE/dtheta_k = -d <s_k, drive_k(s_{k-1})> / dtheta_k`` needs the state and the pooling routes alone.
    ``apply(weights, interactions, prepared, layers, routes, x, *tensors)`` returns the scalar; the tensors are those of
    the interactions, in order (`timm_ebl.energy.interaction.Interaction.tensors`).
    """

    @staticmethod
    def forward(
        ctx,
        weights: Tensor,
        interactions: Sequence[Interaction],
        prepared: Sequence[Prepared | None],
        layers: State,
        routes: Sequence[Tensor | None],
        x: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        weighted = [weigh(s, weights) for s in layers]
        total = sum((s * w).sum() for s, w in zip(layers, weighted, strict=True)) / 2
        first, *rest = zip([x, *layers[:-1]], weighted, routes, prepared, strict=True)
        gradients: list[Tensor | None] = []
        for interaction, arguments in zip(interactions, [_of_one_copy(*first), *rest], strict=True):
            value, found = interaction.coupling(*arguments)
            total = total - value
            gradients += found
        ctx.gradients, ctx.input_gradient = gradients, None
        if ctx.needs_input_grad[5]:
            ctx.input_gradient = interactions[0].feedback(weighted[0], routes[0], x.shape, prepared[0])
        return total

    @staticmethod
    def backward(ctx, scale: Tensor) -> tuple[Tensor | None, ...]:
        gradients = zip((ctx.input_gradient, *ctx.gradients), ctx.needs_input_grad[5:], strict=True)
        found = [-scale * g if g is not None and needed else None for g, needed in gradients]
        if torch.is_grad_enabled():
            found = [None if g is None else _Once.apply(g.detach().requires_grad_()) for g in found]
        return None, None, None, None, None, *found


class _Once(torch.autograd.Function):
    """A gradient that cannot be differentiated again; whoever tries is told so, where autograd would find nothing."""

    @staticmethod
    def forward(ctx, gradient: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> NoReturn:
        raise RuntimeError(
            "The gradient of a relaxation cannot be differentiated again: there is no second derivative."
        )


def _of_one_copy(
    x: Tensor, upper: Tensor, route: Tensor | None, prepared: Prepared | None
) -> tuple[Tensor, Tensor, Tensor | None, Prepared | None]:
    """What the first interaction's gradient is made from, its copies of one input and its route taken together."""
    copies = 1 if prepared is None else prepared.copies
    if copies == 1:
        return x, upper, route, prepared
    route = None if route is None else route[: len(x) // copies]
    return x.chunk(copies)[0], sum(upper.chunk(copies)), route, prepared.of_copies(1)
