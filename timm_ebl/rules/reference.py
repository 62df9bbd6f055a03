"""The paper's procedure, slow and obvious: the fast one is held against it.

It stands by itself: it shares no code with the rest of the package, and PyTorch's functional operations are all that it
uses. Every sweep computes every drive and every feedback anew, and nothing is kept for the next one.

A network is a list of `Layer`, convolutions and then the dense read-out; ``x`` is its input ``(B, C, H, W)``, ``y`` the
desired output ``(B, M)``, a state ``(s_1, .., o)`` has the batch first in each layer, and groups are the indices of the
layers that a sweep updates together, one group after the other. The equations are those of *Energy-Based Learning
Algorithms: A Comparative Study*. What its text leaves open is as in its released code, and said where it is so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

State = tuple[Tensor, ...]
Groups = tuple[tuple[int, ...], ...]
Order = Callable[[int], Groups]
Output = Callable[[Tensor, Tensor], Tensor]

CONTRASTS = {"cl": (0, 1)}
CONTRASTS |= {"p-ep": (0, 1), "n-ep": (-1, 0), "c-ep": (-1, 1)}
CONTRASTS |= {"p-cpl": (0, 1), "n-cpl": (-1, 0), "c-cpl": (-1, 1)}
"""The two states that each contrastive rule compares, by the sign of their nudging."""

RULES = (*CONTRASTS, "tbp", "rbp")
"""The rules of Table 1."""


class Layer(NamedTuple):
    """What joins a layer to the one below: the parameters, and the side and the kind of the pooling windows."""

    weight: Tensor
    bias: Tensor
    pool: int = 2
    average: bool = False


def drive(layer: Layer, lower: Tensor) -> Tensor:
    """Bottom-up input to a layer: ``P(w * s) + b``, or ``W s + b`` for the read-out."""
    if layer.weight.ndim == 2:
        return lower.flatten(1) @ layer.weight.T + layer.bias
    maps = F.conv2d(lower, layer.weight, padding=layer.weight.shape[-1] // 2)
    pool = F.avg_pool2d if layer.average else F.max_pool2d
    return pool(maps, layer.pool) + layer.bias[:, None, None]


def feedback(layer: Layer, lower: Tensor, upper: Tensor) -> Tensor:
    """Top-down input, the gradient of ``<upper, drive(lower)>`` in ``lower``: ``w^T * U(upper)``, or ``W^T upper``.

    ``U`` puts every value where pooling found its maximum (of equal ones, the first), or spreads it over the window.
    """
    weight, pool = layer.weight, layer.pool
    if weight.ndim == 2:
        return (upper @ weight).view_as(lower)
    maps = F.conv2d(lower, weight, padding=weight.shape[-1] // 2)
    if layer.average:
        window, beyond = weight.new_ones(len(weight), 1, pool, pool), [side % pool for side in maps.shape[2:]]
        unpooled = F.conv_transpose2d(upper / pool**2, window, None, pool, 0, beyond, len(weight))
    else:
        _, places = F.max_pool2d(maps, pool, return_indices=True)
        unpooled = F.max_unpool2d(upper, places, pool, output_size=maps.shape[2:])
    return F.conv_transpose2d(unpooled, weight, padding=weight.shape[-1] // 2)


def energy(layers: Sequence[Layer], x: Tensor, state: State) -> Tensor:
    """``E(theta, x, s) = sum_k 1/2 |s_k|^2 - <s_k, drive_k(s_{k-1})>`` with ``s_0 = x``, ``(B,)`` (released code)."""
    pairs = zip(layers, (x, *state[:-1]), state, strict=True)
    return sum((s * (s / 2 - drive(layer, lower))).flatten(1).sum(1) for layer, lower, s in pairs)


def cost(output: Tensor, y: Tensor) -> Tensor:
    """``C(o, y) = 1/2 |o - y|^2``, ``(B,)``."""
    return ((output - y) ** 2).sum(1) / 2


def asynchronous(count: int) -> Groups:
    """Of the first so many layers the 1st, 3rd and so on together, then the others (Section 3; released code)."""
    return tuple(range(0, count, 2)), tuple(range(1, count, 2))


def synchronous(count: int) -> Groups:
    """The first so many layers together."""
    return (tuple(range(count)),)


def zero_state(layers: Sequence[Layer], x: Tensor) -> State:
    """Every layer at zero, where a free phase starts (released code)."""
    state, sides = [], x.shape[2:]
    for layer in layers:
        sides = [side // layer.pool for side in sides] if layer.weight.ndim > 2 else []
        state.append(x.new_zeros(len(x), len(layer.weight), *sides))
    return tuple(state)


def relax(layers, x, state, sweeps, groups: Groups | None = None, output: Output | None = None, omega=1.0) -> State:
    """The state after so many sweeps, asynchronous ones unless groups are given (Equation 1).

    A sweep updates every group once, its layers together: ``s_k <- clip(drive_k + feedback_{k+1}, 0, 1)``
    (bounds: released code). A layer in no group stays. ``output`` makes the new output of the drive into it and the old
    one; without it that is the drive. ``omega`` is not in the paper: it takes a hidden layer so many times as far.
    """
    last = len(layers) - 1

    def update(k: int) -> Tensor:
        bottom_up = drive(layers[k], state[k - 1] if k else x)
        if k == last:
            return output(bottom_up, state[k]) if output else bottom_up
        field = bottom_up + feedback(layers[k + 1], state[k], state[k + 1])
        return ((1 - omega) * state[k] + omega * field).clamp(0, 1)

    for _ in range(sweeps):
        for group in groups or asynchronous(last + 1):
            new = {k: update(k) for k in group}
            state = tuple(new.get(k, old) for k, old in enumerate(state))
    return state


def nudged_state(layers, x, y, free, beta, sweeps, order=asynchronous) -> State:
    """The minimum of ``E + beta C`` from the free state, for ``beta`` of either sign or 0 (Equation 4).

    The output's update is a damped step, as in the released code: ``o <- W s + b - beta (o - y)``.
    """
    return relax(layers, x, free, sweeps, order(len(layers)), lambda drive, old: drive - beta * (old - y))


def clamped_state(layers, x, y, free, beta, sweeps, order=asynchronous) -> State:
    """The minimum over the hidden layers, ``o = (1 - beta) o_* + beta y`` (Equation 7; Equation 2 where beta is 1)."""
    start = (*free[:-1], free[-1] - beta * (free[-1] - y))
    return relax(layers, x, start, sweeps, order(len(layers) - 1))


def gradients(rule, layers, x, y, free, beta=0.25, sweeps=15, order=asynchronous) -> list[Tensor]:
    """What a rule descends, mean over the batch, for every weight and bias in turn: ``-1 / eta`` times its update.

    Both states of a contrastive rule are relaxed from the free one for as many sweeps, the unperturbed one of a
    one-sided rule too, as in the released code; ``beta`` is positive, and 1 for ``cl`` whatever is given. ``tbp`` is
    backpropagation of the mean cost through the sweeps that follow the free state, and ``rbp`` the sum of so many terms
    ``(dF/dtheta)^T v_t`` with ``v_1 = dC/ds``, ``v_{t+1} = (dF/ds)^T v_t`` and ``F`` a synchronous sweep.
    """
    free = tuple(layer.detach().requires_grad_(rule == "rbp") for layer in free)
    layers = [
        layer._replace(weight=layer.weight.detach().requires_grad_(), bias=layer.bias.detach().requires_grad_())
        for layer in layers
    ]
    parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
    if rule == "rbp":
        swept = relax(layers, x, free, 1, synchronous(len(layers)))
        total = [torch.zeros_like(parameter) for parameter in parameters]
        v = torch.autograd.grad(cost(free[-1], y).mean(), free, materialize_grads=True)
        for _ in range(sweeps):
            found = torch.autograd.grad(swept, [*parameters, *free], v, retain_graph=True, materialize_grads=True)
            total, v = [a + b for a, b in zip(total, found, strict=False)], found[len(parameters) :]
        return total
    if rule == "tbp":
        scalar = cost(relax(layers, x, free, sweeps, order(len(layers)))[-1], y)
    else:
        betas = [sign * (1.0 if rule == "cl" else beta) for sign in CONTRASTS[rule]]
        perturbed = nudged_state if rule.endswith("ep") else clamped_state
        with torch.no_grad():
            first, second = (perturbed(layers, x, y, free, signed, sweeps, order) for signed in betas)
        # Equation 3 (cl), Equation 5 (p-ep, n-ep), Equation 6 (c-ep), Equation 8 (p-cpl, n-cpl), Equation 9 (c-cpl)
        scalar = (energy(layers, x, second) - energy(layers, x, first)) / (betas[1] - betas[0])
    return list(torch.autograd.grad(scalar.mean(), parameters))
